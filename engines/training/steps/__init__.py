"""The optimizer steps of a training: the Trainer, what it measures of a step, and how it takes rows."""
