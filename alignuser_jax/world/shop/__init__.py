"""A web shop that is rebuilt from the pages of a log."""
