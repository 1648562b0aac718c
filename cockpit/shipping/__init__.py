"""One verdict on one GGUF file, bound to its SHA-256: the checks, the report, and finding the verdict again."""
