"""Rows of any format as a folder of splits: duplicates, groups, the division into train, val and test, statistics."""
