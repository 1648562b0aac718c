"""`cockpit merge`: merge one or more adapters into their base model, as a new run."""

from __future__ import annotations

import argparse
import math

from cockpit.command_line.arguments import ADAPTER_HELP, RUN_END_CODES, add_field, add_made_run, output_sets
from cockpit.command_line.parser import CommandParser
from cockpit.headless.follow_command import launch_made
from cockpit.one_stage.from_words import merge_text, stage_sets
from cockpit.one_stage.recipe import Merge
from cockpit.runs.find import runs_root
from engines.words import ExitCode
from recipes.problems import OperatorError, printable
from recipes.spelling import spell


def declare(parser: CommandParser) -> None:
    """The arguments of `cockpit merge`."""
    parser.add_argument("adapters", nargs="*", metavar="ADAPTER", help=ADAPTER_HELP)
    parser.add_argument(
        "--adapter",
        action="append",
        default=[],
        metavar="ADAPTER",
        dest="more_adapters",
        help="another ADAPTER (repeatable)",
    )
    parser.add_argument("--model", metavar="MODEL", help="base model (default: the model that the adapters name)")
    parser.add_argument("--weights", metavar="W,W,...", help="weight of each adapter in the sum (default: 1 each)")
    add_field(parser, "--dtype", "merge", "dtype", "type of the merged weights; base keeps the base model's type")
    add_field(
        parser, "--base-rounding", "merge", "base_rounding", "round the base to 4 bits first, as in QLoRA training"
    )
    parser.add_argument(
        "--untie",
        action="store_true",
        help="untie the embeddings if an adapter changes only one of the two: the model gets a separate output head",
    )
    add_made_run(parser)
    parser.exit_codes = RUN_END_CODES
    parser.examples = (
        ("cockpit merge last:adapter", "Merge the adapter that a stage of the newest run trained."),
        ("cockpit merge ./style ./facts --weights 0.7,0.3 --model ./base", "Merge two adapter folders with weights."),
    )


def run(args: argparse.Namespace) -> ExitCode:
    """Create the recipe, launch it and follow the run."""
    adapters = [*args.adapters, *args.more_adapters]
    if not adapters:
        raise OperatorError("ADAPTER — missing; allowed: folders, or RUN:STAGE", "see: cockpit merge --help")
    sets = [*stage_sets(Merge.name, args.sets), *output_sets(Merge.name, args)]
    if args.weights is not None:
        sets.append(f"{Merge.name}.weights={spell(_weights(args.weights))}")
    if args.base_rounding is not None:
        sets.append(f"{Merge.name}.base_rounding={args.base_rounding}")
    if args.untie:
        sets.append(f"{Merge.name}.untie_word_embeddings=true")
    return launch_made(merge_text(runs_root(args.runs_dir), adapters, args.model, args.dtype), args, sets)


def _weights(text: str) -> list[float]:
    try:
        found = [float(word) for word in text.split(",")]
    except ValueError:
        found = [math.nan]
    if not all(math.isfinite(weight) for weight in found):
        raise OperatorError(
            f"--weights — got {printable(text, 100)}; allowed: numbers separated by commas, such as 0.7,0.3"
        )
    return found
