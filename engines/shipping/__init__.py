"""What the results of evaluations say about one GGUF file, computed again from their rows."""
