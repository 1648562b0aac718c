"""Identity of a stage's inputs: the files that its engine reads, their SHA-256, and their comparison with a record."""
