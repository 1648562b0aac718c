"""Shared by pretraining, fine-tuning and evaluation: the loss, the Trainer, its checkpoints and its requests."""
