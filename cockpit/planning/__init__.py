"""What a recipe will take (steps, checkpoints, files), and whether its models can be used."""
