"""Columns of numbers: in memory, or mapped from a file."""
