"""Measurements on this machine, in one table: `make bench`, or `python -m bench NAME…`."""
