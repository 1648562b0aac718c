"""Cockpit's exporters: convert a trained model to files for serving, and prove that they are the same model."""
