"""What a recipe's evaluations can judge: their gates, and their rows of tests."""
