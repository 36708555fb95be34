"""Agents at work: one session as a coroutine, many of them at once, and a log that survives."""
