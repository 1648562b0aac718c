"""LoRA fine-tuning on conversations."""
