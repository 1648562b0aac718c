"""Over which processes a stage computes."""
