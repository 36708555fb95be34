"""Experiments, one per file: `--config=configs/NAME.py`, or `--config=NAME` from any folder.

A config is a program that defines `experiment`. To make your own, import one of these and
change what differs (`dataclasses.replace`), as `configs/small_uniform.py` does.
"""
