"""`cockpit export`: GGUF files of a model, compared with it, as a run of its own."""

from __future__ import annotations

import argparse

from cockpit.headless.follow_command import launch_made
from cockpit.one_stage.from_words import EXPORTED, export_text, stage_sets
from cockpit.runs.find import runs_root

_WORDS = ("imatrix", "converter", "quantizer", "llama_cpp", "adapter_type", "threads", "parity_positions")


def run(args: argparse.Namespace) -> int:
    """Make the recipe, launch it and follow."""
    sets = stage_sets(EXPORTED, args.sets)
    sets += [f"{EXPORTED}.{name}={value}" for name in _WORDS if (value := getattr(args, name)) is not None]
    made = export_text(
        runs_root(args.runs_dir),
        args.model,
        args.types,
        args.data,
        adapter=args.adapter,
        adapters=[name for name in (args.adapters or "").split(",") if name],
    )
    return launch_made(made, args, sets)
