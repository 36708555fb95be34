"""Plots of logs and results; the only room that imports matplotlib."""
