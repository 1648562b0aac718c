"""`cockpit export`: write GGUF files of a model and compare them with it, as a new run."""

from __future__ import annotations

import argparse

from cockpit.command_line.arguments import (
    ADAPTER_HELP,
    HELD_OUT_HELP,
    MODEL_HELP,
    RUN_END_CODES,
    add_field,
    add_made_run,
    add_tensor_types,
    output_sets,
    threads,
)
from cockpit.command_line.parser import CommandParser
from cockpit.command_line.tensor_types import FIELD, read_tensor_types
from cockpit.headless.follow_command import launch_made
from cockpit.one_stage.from_words import export_text, stage_sets
from cockpit.one_stage.recipe import Export
from cockpit.runs.find import runs_root
from engines.words import ExitCode
from recipes.file_types import FIRST_FILE_TYPES
from recipes.spelling import spell

_WORDS = (
    "imatrix",
    "target_bits",
    "converter",
    "quantizer",
    "llama_cpp",
    "adapter_type",
    "threads",
    "byte_proof",
    "parity_positions",
)
_TEXTS = ("file_name",)


def declare(parser: CommandParser) -> None:
    """The arguments of `cockpit export`."""
    parser.add_argument("model", metavar="MODEL", help=f"{MODEL_HELP}; an adapter is merged into its base model")
    parser.add_argument("--types", metavar="T,T,...", help=f"GGUF file types (default: {','.join(FIRST_FILE_TYPES)})")
    add_tensor_types(parser)
    add_field(
        parser,
        "--target-bits",
        "export",
        "target_bits",
        "also write a file of this many bits per weight; measured errors decide the type of each tensor",
        "BITS",
    )
    parser.add_argument(
        "--adapter", metavar="ADAPTER", help="merge this adapter while writing the files; no merged copy is kept"
    )
    parser.add_argument("--adapters", metavar="A,A,...", help=f"also write these as GGUF adapters; each {ADAPTER_HELP}")
    parser.add_argument(
        "--file-name",
        metavar="NAME",
        help="beginning of the files' names (default: base model, size, training runs)",
    )
    add_field(parser, "--adapter-type", "export", "adapter_type", "file type of the GGUF adapters")
    parser.add_argument(
        "--data",
        metavar="FILE|DIR|RUN:STAGE",
        help=f"held-out text for the comparison: {HELD_OUT_HELP} (default: text of Python's standard library)",
    )
    add_field(
        parser,
        "--imatrix",
        "export",
        "imatrix",
        "compute an importance matrix: auto for types that need one, always for all types that use one",
    )
    add_field(
        parser,
        "--converter",
        "export",
        "converter",
        "converter: own, or the script of your llama.cpp checkout (upstream)",
    )
    add_field(parser, "--quantizer", "export", "quantizer", "program that quantizes; auto tries the others in order")
    parser.add_argument("--llama-cpp", metavar="DIR", help="your llama.cpp (default: COCKPIT_LLAMA_CPP, then PATH)")
    parser.add_argument("--threads", type=threads, metavar="N", help="CPU threads (default: all physical cores)")
    add_field(
        parser, "--byte-proof", "export", "byte_proof", "rows of each tensor to derive again and compare byte for byte"
    )
    add_field(
        parser, "--parity-positions", "export", "parity_positions", "token positions to compare; 0: no comparison", "N"
    )
    add_made_run(parser)
    parser.exit_codes = RUN_END_CODES
    parser.examples = (
        (
            "cockpit export last:merged",
            "Write F16, Q8_0 and Q4_K_M files of a stage's model, and compare them with it.",
        ),
        ("cockpit export ./model --types Q6_K --data notes.txt", "Export a model folder and compare on your own text."),
        ("cockpit export ./model --out ./gguf", "Also place the files into a folder of your own."),
        ("cockpit export ./base --adapters last:style,last:facts", "Write GGUF adapters that share one base."),
    )


def run(args: argparse.Namespace) -> ExitCode:
    """Create the recipe, launch it and follow the run."""
    sets = [*stage_sets(Export.name, args.sets), *output_sets(Export.name, args)]
    sets += [f"{Export.name}.{name}={value}" for name in _WORDS if (value := getattr(args, name)) is not None]
    sets += [f"{Export.name}.{name}={spell(value)}" for name in _TEXTS if (value := getattr(args, name)) is not None]
    if args.tensor_types:
        sets.append(f"{Export.name}.{FIELD}={spell(read_tensor_types(args.tensor_types))}")
    made = export_text(
        runs_root(args.runs_dir),
        args.model,
        args.types,
        args.data,
        adapter=args.adapter,
        adapters=[name for name in (args.adapters or "").split(",") if name],
    )
    return launch_made(made, args, sets)
