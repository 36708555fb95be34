"""A web shop rebuilt from the pages of a log."""
