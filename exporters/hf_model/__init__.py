"""A Hugging Face model folder, read without trust: config, tensors, tokenizer."""
