"""Arguments that several commands take, and the values that they allow."""

from __future__ import annotations

import argparse
from pathlib import Path

from cockpit.command_line.parser import CommandParser
from engines.words import ExitCode
from recipes.problems import OperatorError
from recipes.spelling import spell

RUN_END_CODES = {
    ExitCode.DONE: "the run succeeded, or --detach started it",
    ExitCode.FAILED: "the run failed",
    ExitCode.MISTAKE: "wrong usage or an invalid recipe; nothing was started",
    ExitCode.REFUSED: "a gate failed",
    ExitCode.INTERRUPTED: "the run was stopped, or this command detached from it",
}
"""Exit codes of commands that follow a run to its end."""

MODEL_HELP = "a folder as transformers saves it, or RUN:STAGE"
ADAPTER_HELP = "a folder as PEFT saves it, or RUN:STAGE"
HELD_OUT_HELP = "a text file, a folder of text files, or the output of a prepare stage"


def add_runs_dir(parser: argparse.ArgumentParser) -> None:
    """`--runs-dir`, before or after the command; with SUPPRESS, the default of one does not overwrite the other."""
    parser.add_argument(
        "--runs-dir",
        metavar="DIR",
        default=argparse.SUPPRESS,
        help="folder of the runs (default: COCKPIT_RUNS_DIR, else ~/.local/share/cockpit/runs)",
    )


def add_run(parser: CommandParser) -> None:
    """The argument RUN."""
    parser.add_argument("run", metavar="RUN", help="a run's id, a unique prefix of the id, a run directory, or: last")


def add_recipe(parser: CommandParser, *, optional: bool = False) -> None:
    """The argument RECIPE, and `--set` to change its fields."""
    parser.add_argument(
        "recipe",
        metavar="RECIPE",
        nargs="?" if optional else None,
        help="a recipe file, or the name of a shipped recipe",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="sets",
        help="override a field: stage.field=value or defaults.kind.field=value (repeatable)",
    )


def add_tensor_types(parser: argparse.ArgumentParser) -> None:
    """`--tensor-types`, the operator's own tensor types."""
    parser.add_argument(
        "--tensor-types",
        metavar="NAME=TYPE,...|FILE",
        help="tensor types that replace those of the quantized file types, by part (ffn_down), tensor (blk.0.ffn_down)"
        " or pattern with *; or a recipe file whose export has tensor_types",
    )


def add_json(parser: CommandParser) -> None:
    """`--json`, output for programs."""
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def add_output(parser: CommandParser, *, plain: bool = False) -> None:
    """Options for the output of a command that follows a run.

    Args:
        parser: the command's parser.
        plain: add `--plain`, for a command that opens the screen by default.
    """
    how = parser.add_mutually_exclusive_group()
    if plain:
        how.add_argument("--plain", action="store_true", help="print lines instead of opening the screen")
    how.add_argument("--json", action="store_true", help="print only the lines of the run's journal")
    how.add_argument("--quiet", action="store_true", help="print nothing; the exit code is the result")


def add_following(parser: CommandParser) -> None:
    """Options of a command that starts a run."""
    parser.add_argument("--detach", action="store_true", help="print the run's id and return without waiting")
    add_output(parser)


def add_made_run(parser: CommandParser) -> None:
    """Options of a command that creates and runs a recipe of one stage."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        dest="sets",
        help="set another field of the stage (repeatable; recipes/REFERENCE.md lists them)",
    )
    add_out(parser, "also place the files into this folder, new or empty (default: only the run's folder)")
    parser.add_argument("--name", metavar="NAME", help="name in the run's id (default: derived from the input's name)")
    add_following(parser)


def add_out(parser: CommandParser, text: str) -> None:
    """`--out`, a folder for files, and `--force`."""
    parser.add_argument("--out", metavar="DIR", help=text)
    parser.add_argument("--force", action="store_true", help="replace files of the same names in that folder")


def output_sets(stage: str, args: argparse.Namespace) -> list[str]:
    """`--out` and `--force` as overrides of a stage.

    Raises:
        OperatorError: `--force` without `--out`.
    """
    if args.force and args.out is None:
        raise OperatorError("--force — only with --out DIR: a run never replaces the files of another run")
    if args.out is None:
        return []
    out = Path(args.out).expanduser().absolute()
    forced = [f"{stage}.overwrite_output_dir=true"] if args.force else []
    return [f"{stage}.output_dir={spell(str(out))}", *forced]


def add_field(parser: CommandParser, option: str, kind: str, field: str, text: str, metavar: str | None = None) -> None:
    """An option that sets a field of a stage; choices and default come from the recipe's schema.

    Args:
        parser: the command's parser.
        option: such as `--imatrix`.
        kind: the stage's kind.
        field: the field's name.
        text: what the option does.
        metavar: the value's name, for a field without choices.
    """
    from recipes.fields import fields_of

    spec = next(spec for spec in fields_of(kind) if spec.path == field)
    default = "" if spec.default is None else f" (default: {spec.default})"
    parser.add_argument(option, choices=spec.choices or None, metavar=metavar, help=text + default)


def speed(text: str) -> float:
    """A playback speed: a multiple of real time; infinite for `max`."""
    if text == "max":
        return float("inf")
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not value > 0:
        raise argparse.ArgumentTypeError(f"must be above 0; got {text!r}; allowed: a number such as 4, or max")
    return value


def threads(text: str) -> int:
    """A number of CPU threads."""
    if not text.isdecimal() or not 0 < int(text) <= 1024:
        raise argparse.ArgumentTypeError(f"must be a number of threads; got {text!r}; allowed: 1 to 1024")
    return int(text)


def seconds(text: str) -> float:
    """A time limit in seconds."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"must be a time; got {text!r}; allowed: seconds above 0")
    return value


def positions(text: str) -> int:
    """A number of token positions."""
    if not text.isdecimal() or not 2 <= int(text) <= 10_000_000:
        raise argparse.ArgumentTypeError(f"must be a number of positions; got {text!r}; allowed: a whole number ≥ 2")
    return int(text)


def step(text: str) -> int:
    """An optimizer step."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a step; got {text!r}; allowed: a whole number ≥ 0")
    return int(text)
