"""The plan of a recipe (steps, checkpoints, files), and checks of the models that it names."""
