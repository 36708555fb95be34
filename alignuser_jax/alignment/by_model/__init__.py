"""Reflections that a language model writes: requests, filter, retries, and what is shown."""
