"""Reads and validates a Hugging Face model folder: config, tensors, tokenizer."""
