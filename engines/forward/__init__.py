"""Rows through a model without padding, and their loss: logits only where a label is."""
