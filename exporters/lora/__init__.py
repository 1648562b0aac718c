"""LoRA adapters and their merge into a base model."""
