"""A run's directory: its paths, its creation, its locks, and where it is after a move."""
