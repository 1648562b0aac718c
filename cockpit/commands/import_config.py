"""`cockpit import CONFIG`: a configuration of LLaMA-Factory, Axolotl, TRL or Unsloth as a recipe."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from cockpit.command_line.arguments import add_json
from cockpit.command_line.parser import CommandParser
from cockpit.forms.save import save_copy
from cockpit.importing.config import read_config
from cockpit.importing.programs import PROGRAMS, import_config
from cockpit.importing.recipe_text import recipe_text
from cockpit.importing.report import report_lines, to_json
from cockpit.text.output import print_json, print_out, say
from engines.words import ExitCode
from recipes.load import load_recipe_text
from recipes.problems import RecipeError


def declare(parser: CommandParser) -> None:
    """The arguments of `cockpit import`."""
    parser.add_argument(
        "config",
        metavar="CONFIG",
        help="a YAML or JSON file of LLaMA-Factory, Axolotl, TRL or Unsloth; LLaMA-Factory's dataset_info.json; or a"
        " Python script or notebook, of which literal arguments are read and nothing is executed",
    )
    parser.add_argument("--out", metavar="FILE", help="new file for the recipe (default: stdout)")
    parser.add_argument(
        "--program", choices=list(PROGRAMS), metavar="NAME",
        help=f"the file's program, one of {', '.join(PROGRAMS)} (default: found by its keys)",
    )  # fmt: skip
    parser.add_argument("--dataset", metavar="NAME,...", help="data sets of a dataset_info.json (default: all)")
    parser.add_argument(
        "--accelerate",
        metavar="FILE",
        help="the configuration of accelerate launch with which the training is started: its processes become launch",
    )
    add_json(parser)
    parser.exit_codes = {
        ExitCode.DONE: "the recipe was made; the report lists every key that is not in it",
        ExitCode.FAILED: "the configuration asks for a method that recipes do not have; no recipe was made",
        ExitCode.MISTAKE: "the file cannot be read, or is of no known program",
    }
    parser.examples = (
        ("cockpit import llama3_lora_sft.yaml --out mine.toml", "Write a recipe, and list what is not in it."),
        ("cockpit import data/dataset_info.json --dataset identity", "Show how a data set is read, as a recipe."),
        ("cockpit import sft.yaml --accelerate fsdp.yaml", "Train over the processes that accelerate launch starts."),
        ("cockpit import train.py --json", "List the arguments that a script gives, and what they mean here."),
    )


def run(args: argparse.Namespace) -> ExitCode:
    """Import; exit code 1 if there is no recipe for what the configuration asks."""
    only = [name.strip() for name in (args.dataset or "").split(",") if name.strip()]
    launch = read_config(Path(args.accelerate).expanduser()) if args.accelerate else None
    imported = import_config(read_config(Path(args.config).expanduser()), args.program, only, launch)
    recipe = recipe_text(imported)
    out = Path(args.out).expanduser() if args.out else None
    if recipe and out is not None:
        save_copy(out, recipe)
    if args.json:
        print_json(to_json(imported, recipe))
        return ExitCode.DONE if recipe else ExitCode.FAILED
    write = print_out if out is not None else say
    write("\n".join(report_lines(imported)))
    if not recipe:
        say("cockpit: no recipe was made: the configuration asks for a method that recipes do not have")
        return ExitCode.FAILED
    todo = list(_problems(recipe, out or Path.cwd() / "imported.toml"))
    if todo:
        write("\nThe recipe needs a change before it runs:\n" + "\n".join(f"  {line}" for line in todo))
    if out is None:
        say("")
        print_out(recipe, end="")
    else:
        write(f"\nwrote {out}; next: cockpit check {out}")
    return ExitCode.DONE


def _problems(recipe: str, path: Path) -> Iterator[str]:
    try:
        load_recipe_text(recipe, path)
    except RecipeError as error:
        yield from (problem.words for problem in error.problems)
