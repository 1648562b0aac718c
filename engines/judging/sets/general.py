"""The general set: short questions of many kinds, to be asked before and after a training."""

from __future__ import annotations

from pathlib import Path

GENERAL = "general"
"""The word by which a recipe and a command name the set."""


def general_set() -> Path:
    """The test file of the general set: numbers, choices, words, texts and JSON, each with its checks.

    Its rows are pairs with those of a baseline by their prompts. A new version of Cockpit may have other rows, so the
    results of an evaluation record its SHA-256.
    """
    return Path(__file__).with_name("general.jsonl")
