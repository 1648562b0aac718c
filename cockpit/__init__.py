"""Cockpit trains language models from a recipe, in a terminal: live, resumable and replayable."""

__version__ = "0.2.0"
