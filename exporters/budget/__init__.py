"""Tensor types for a size, chosen by measured errors."""
