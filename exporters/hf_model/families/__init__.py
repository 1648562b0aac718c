"""The model families that are written to GGUF, one file each."""
