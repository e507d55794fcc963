"""Frames and bytes: no I/O, no clock, no randomness."""
