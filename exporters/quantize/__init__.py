"""Quantization of one GGUF file to other types."""
