"""Runs a program that a model wrote against tests, confined. `host` and what it imports: standard library only."""
