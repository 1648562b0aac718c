"""The reference for every file: the model in transformers and float32, its weights read layer by layer."""
