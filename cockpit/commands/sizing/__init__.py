"""The command that sizes a model before there is a recipe."""
