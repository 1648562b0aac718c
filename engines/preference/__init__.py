"""Training on preferences: pairs of answers, with TRL's DPOTrainer."""
