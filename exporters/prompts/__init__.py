"""What a runtime feeds a model: the regular forms of chat templates, and what transformers does with special tokens."""
