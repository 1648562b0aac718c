"""The decoders that pretraining can make: their types, their positions and their sizes."""
