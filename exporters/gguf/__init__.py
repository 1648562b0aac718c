"""GGUF files: names, keys, vocabulary, tensors and types."""
