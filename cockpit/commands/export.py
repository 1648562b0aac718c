"""`cockpit export`: GGUF files of a model, compared with it, as a run of its own."""

from __future__ import annotations

import argparse

from cockpit.following import launch_made
from cockpit.locations import runs_root
from cockpit.one_stage import export_text


def run(args: argparse.Namespace) -> int:
    """Make the recipe, launch it and follow."""
    return launch_made(export_text(runs_root(args.runs_dir), args.model, args.types, args.data), args)
