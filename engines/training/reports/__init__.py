"""What leaves a training: its events in the journal, and the same numbers for other programs."""
