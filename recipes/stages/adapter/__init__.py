"""The adapter of a fine-tuning: its fields, and patterns of the layers that it is for."""
