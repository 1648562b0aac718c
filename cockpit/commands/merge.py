"""`cockpit merge`: an adapter into its base model, as a run of its own."""

from __future__ import annotations

import argparse

from cockpit.following import launch_made
from cockpit.locations import runs_root
from cockpit.one_stage import merge_text


def run(args: argparse.Namespace) -> int:
    """Make the recipe, launch it and follow."""
    return launch_made(merge_text(runs_root(args.runs_dir), args.adapter, args.model, args.dtype), args)
