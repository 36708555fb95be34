"""Read columns, text lines and values from files that people wrote."""
