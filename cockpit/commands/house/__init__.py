"""Commands that keep house: sizes, removing, renaming, notes."""
