"""Optimizers that neither transformers nor bitsandbytes has under a name."""
