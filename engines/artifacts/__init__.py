"""Folders that a stage writes: manifests, checkpoints, and the chain of custody."""
