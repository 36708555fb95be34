"""Adapters for recommenders of other libraries, for scores and for functions."""
