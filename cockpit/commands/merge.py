"""`cockpit merge`: one adapter or several into their base model, as a run of its own."""

from __future__ import annotations

import argparse
import math

from cockpit.headless.follow_command import launch_made
from cockpit.one_stage.from_words import MERGED, merge_text, stage_sets
from cockpit.runs.find import runs_root
from recipes.problems import OperatorError, printable


def run(args: argparse.Namespace) -> int:
    """Make the recipe, launch it and follow."""
    adapters = [*args.adapters, *args.more_adapters]
    if not adapters:
        raise OperatorError("ADAPTER — got none; allowed: folders, or RUN:STAGE", "see: cockpit merge --help")
    sets = stage_sets(MERGED, args.sets)
    if args.weights is not None:
        sets.append(f"{MERGED}.weights=[{', '.join(map(repr, _weights(args.weights)))}]")
    if args.base_rounding is not None:
        sets.append(f"{MERGED}.base_rounding={args.base_rounding}")
    if args.untie:
        sets.append(f"{MERGED}.untie_word_embeddings=true")
    return launch_made(merge_text(runs_root(args.runs_dir), adapters, args.model, args.dtype), args, sets)


def _weights(text: str) -> list[float]:
    try:
        found = [float(word) for word in text.split(",")]
    except ValueError:
        found = [math.nan]
    if not all(math.isfinite(weight) for weight in found):
        raise OperatorError(
            f"--weights — got {printable(text, 100)}; allowed: numbers with commas between, such as 0.7,0.3"
        )
    return found
