"""Cockpit: trains language models from a recipe, live, resumable and replayable, in a terminal."""

__version__ = "0.2.0"
