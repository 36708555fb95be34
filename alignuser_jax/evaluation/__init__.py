"""Test how far a policy behaves like the humans of a log: one file per protocol, one suite."""
