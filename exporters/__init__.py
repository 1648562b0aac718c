"""Cockpit's exporters: from a trained model to the files that serve it, and the proof that they are the same model."""
