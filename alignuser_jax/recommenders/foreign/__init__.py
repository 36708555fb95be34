"""Adapters for recommenders of other libraries, for scores, for files and for functions."""
