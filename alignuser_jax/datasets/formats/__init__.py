"""One reader per format of human logs; each returns a `Dataset`."""
