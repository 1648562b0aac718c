"""`cockpit quantize`: quantize a GGUF file of full precision, or export a model's quantized types.

A child process quantizes a GGUF file immediately and shows its progress on this terminal. A model folder or a stage of
a run starts an export run, as `cockpit export` does, because its files are compared with the model.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from cockpit.command_line.arguments import (
    HELD_OUT_HELP,
    MODEL_HELP,
    RUN_END_CODES,
    add_following,
    add_out,
    add_tensor_types,
    output_sets,
    threads,
)
from cockpit.command_line.parser import CommandParser
from cockpit.command_line.tensor_types import FIELD, read_tensor_types
from cockpit.commands.child_job import follow_job
from cockpit.headless.follow_command import launch_made
from cockpit.one_stage.from_words import export_text
from cockpit.one_stage.recipe import Export
from cockpit.runs.find import find_run, runs_root
from cockpit.text import formatting as fmt
from cockpit.text.output import print_json, say
from engines.words import ExitCode
from recipes.file_types import FIRST_QUANTIZED
from recipes.problems import OperatorError, printable
from recipes.spelling import spell

FULL_PRECISION = ("F32", "BF16", "F16")
"""File types of a finished export that can be quantized, best first."""
_OLD_ADAPTER = "-lora-"
"""In the name of an older version's GGUF adapter, which ended in its type as a model's does."""


def declare(parser: CommandParser) -> None:
    """The arguments of `cockpit quantize`."""
    parser.add_argument("source", metavar="FILE|MODEL", help=f"a GGUF file in F32, F16 or BF16; or {MODEL_HELP}")
    parser.add_argument("--types", metavar="T,T,...", help=f"GGUF file types (default: {','.join(FIRST_QUANTIZED)})")
    add_tensor_types(parser)
    parser.add_argument(
        "--imatrix",
        metavar="FILE|HOW",
        help="importance matrix: a file for a GGUF file (default: none); auto, always or never for a model "
        "(default: auto)",
    )
    add_out(parser, "folder for the files (default: the GGUF file's own; for a model, only the run's)")
    parser.add_argument(
        "--threads", type=threads, metavar="N", help="CPU threads for a GGUF file (default: all physical cores)"
    )
    parser.add_argument(
        "--data",
        metavar="FILE|DIR|RUN:STAGE",
        help=f"held-out text for the comparison of a model: {HELD_OUT_HELP} (default: text of Python's "
        "standard library)",
    )
    parser.add_argument("--name", metavar="NAME", help="name in the id of a model's run")
    add_following(parser)
    parser.exit_codes = {
        **RUN_END_CODES,
        ExitCode.DONE: "the files were written",
        ExitCode.FAILED: "a file could not be written, or the run failed",
    }
    parser.examples = (
        ("cockpit quantize model-F16.gguf --types Q4_K_M,Q6_K", "Write two files beside a GGUF file."),
        (
            "cockpit quantize ./model --types IQ3_XXS --imatrix always",
            "Export a model folder, with an importance matrix.",
        ),
    )


def run(args: argparse.Namespace) -> ExitCode:
    """Quantize; returns the exit code of the child process or of the run."""
    types = args.types or ",".join(FIRST_QUANTIZED)
    own_types = read_tensor_types(args.tensor_types) if args.tensor_types else {}
    source = _gguf_file(args)
    if source is None:
        if args.threads is not None:
            raise OperatorError("--threads — only for GGUF files; for a model: cockpit export --threads")
        if args.imatrix is not None and args.imatrix not in ("auto", "always", "never"):
            raise OperatorError(
                f"--imatrix — got {printable(args.imatrix)}; allowed for a model: auto, always, never",
                "a model's importance matrix is computed from held-out text; only a GGUF file takes a matrix file",
            )
        made = export_text(runs_root(args.runs_dir), args.source, types, args.data, imatrix=args.imatrix)
        sets = [f"{Export.name}.{FIELD}={spell(own_types)}"] if own_types else []
        return launch_made(made, args, [*sets, *output_sets(Export.name, args)])
    if args.detach or args.data or args.name:
        raise OperatorError("--detach, --data and --name — only for models; a GGUF file is quantized immediately")
    job = {
        "source": str(source),
        "types": [name.strip() for name in types.split(",") if name.strip()],
        "out": str(Path(args.out).expanduser().absolute() if args.out else source.parent),
        "imatrix": str(_matrix(args.imatrix)) if args.imatrix else None,
        "threads": args.threads,
        "force": args.force,
        FIELD: own_types,
    }
    return _follow(job, args)


def _gguf_file(args: argparse.Namespace) -> Path | None:
    """The GGUF file to quantize: the source itself, or the best file of a finished export; None for a model."""
    path = Path(args.source).expanduser()
    if path.is_file():
        return path.absolute()
    if path.suffix == ".gguf":
        raise OperatorError(f"FILE — no file {printable(str(path), 400)}", "give a GGUF file in F32, F16 or BF16")
    run_part, colon, stage = args.source.rpartition(":")
    if path.is_dir() or not colon or not run_part or os.sep in stage:
        return None
    out = find_run(runs_root(args.runs_dir), run_part).out(stage)
    files = [file for kind in FULL_PRECISION for file in _files_of(out, kind)]
    return next((file for file in files if _OLD_ADAPTER not in file.name), None)


def _files_of(out: Path, kind: str) -> list[Path]:
    """The files of a type in an export's output; the first of a split one."""
    return [*sorted(out.glob(f"*-{kind}.gguf")), *sorted(out.glob(f"*-{kind}-00001-of-*.gguf"))]


def _matrix(given: str) -> Path:
    path = Path(given).expanduser().absolute()
    if not path.is_file():
        raise OperatorError(
            f"--imatrix — no file {printable(given, 400)}", "for a GGUF file, give an importance matrix in GGUF"
        )
    return path


def _follow(job: dict[str, Any], args: argparse.Namespace) -> ExitCode:
    live = sys.stderr.isatty() and not args.quiet and not args.json

    def show(line: dict[str, Any]) -> None:
        if args.json:
            print_json(line, indent=None, flush=True)
        _show(line, live=live, quiet=args.quiet or args.json)

    return follow_job("exporters.quantize.quantize_file", job, show, needs=("numpy", "gguf"))


def _show(line: dict[str, Any], *, live: bool, quiet: bool) -> None:
    if "error" in line:
        say(f"cockpit: {line['error']}" + (f"\n  {line['hint']}" if line["hint"] else ""), clear=live)
        return
    if quiet:
        return
    match line:
        case {"progress": {"share": share, "left_s": left_s}}:
            if live:
                say(f"{fmt.share_done(share)}   {_left(left_s)}", end="", clear=True)
        case {"phase": phase, "estimated_s": seconds, "bytes": size}:
            about = "" if seconds is None else f", about {fmt.duration(seconds)}"
            say(f"{phase}: {fmt.size(size)}{about}", clear=live)
        case {"file": made}:
            say(
                f"{made['file']}  {fmt.size_in_both(made['bytes'])}  "
                f"{fmt.bits_per_weight(made['bits_per_weight'])} bits per weight",
                clear=live,
            )
        case {"note": text}:
            say(f"measured: {text}", clear=live)
        case {"warning": text}:
            say(f"warning: {text}", clear=live)


def _left(seconds: float | None) -> str:
    return "" if seconds is None else f"{fmt.duration(seconds)} left"
