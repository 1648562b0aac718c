"""Compares a file with its model: audit, parity, fixture, other runtimes."""
