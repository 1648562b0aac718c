"""What a recipe will take, and whether it can work."""
