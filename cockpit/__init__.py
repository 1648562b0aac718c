"""Cockpit trains language models from a recipe, in a terminal: live, resumable and replayable."""

from pathlib import Path

__version__ = "0.2.0"

CODE_ROOT = Path(__file__).resolve().parents[1]
"""The folder of the packages: the working directory of the supervisor and the sampler."""
