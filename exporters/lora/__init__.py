"""LoRA adapters, and their sum with a base model."""
