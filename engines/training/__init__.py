"""What pretraining, fine-tuning and evaluation share: the loss, the Trainer, its checkpoints and its requests."""
