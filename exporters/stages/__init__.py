"""The merge and export stages, which use all of it."""
