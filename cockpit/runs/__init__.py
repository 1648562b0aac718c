"""What a run's files say: reading, folding, listing, playing back, verifying."""
