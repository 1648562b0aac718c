"""One GGUF file to others."""
