"""Keeping house: what runs take on the disk, what refers to them, and removing, renaming and annotating them."""
