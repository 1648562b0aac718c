"""`cockpit parity`: compare GGUF files with their source model, in llama.cpp and in any other runtime.

The expected answers are in the fixture that an export writes. With `--model`, the model computes them, and the files'
contents and their token distributions are compared as well. A child process does the work.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cockpit.command_line.arguments import HELD_OUT_HELP, add_json, positions, seconds, threads
from cockpit.command_line.parser import CommandParser
from cockpit.commands.child_job import follow_job
from cockpit.runs.find import find_run, runs_root
from cockpit.runs.reader import read_now
from cockpit.runs.verify import made_from
from cockpit.text import formatting as fmt
from cockpit.text.output import print_json, print_out, say
from cockpit.text.safe_text import error_text, safe_text
from cockpit.text.text_table import text_table
from engines.json_text import read_json
from engines.llama.gguf_file import part_paths
from engines.run_dir.paths import FIXTURE_FILE, is_run_dir
from engines.words import ExitCode
from exporters.gguf.file_names import without_shard
from recipes.problems import OperatorError, printable
from recipes.stages.export import BYTE_PROOFS, COMPARE_NEEDS
from recipes.stages.registry import makes

_TITLES = ("file", "runtime", "against", "tokens", "max Δ log p", "time", "verdict")
_PROOF_TITLES = ("file", "tensors, byte for byte", "time", "keys and vocabulary")
_MODEL_TITLES = ("file", "arithmetic", "limit", "mean KL", "top-1", "ppl", "light")


@dataclass(frozen=True)
class _Source:
    """The inputs of a comparison: a fixture (None with `--model`) and GGUF files."""

    fixture: Path | None
    files: list[Path]


def declare(parser: CommandParser) -> None:
    """The arguments of `cockpit parity`."""
    parser.add_argument(
        "source",
        nargs="+",
        metavar="RUN|RUN:STAGE|DIR|FILE",
        help="a finished export, its fixture.json, or GGUF files",
    )
    parser.add_argument("--model", metavar="DIR", help="the Hugging Face folder to compare GGUF files with")
    parser.add_argument(
        "--runner",
        metavar="CMD",
        help="also test another runtime: a command such as 'CMD {gguf} {prompt_ids}' that prints the generated token "
        "ids; {prompt}, {limit}, {stop_ids} and {seed} are available too",
    )
    parser.add_argument(
        "--timeout", type=seconds, metavar="SECONDS", help="time limit for one prompt in that runtime (default: 600)"
    )
    parser.add_argument("--types", metavar="T,T,...", help="compare only these file types of an export (default: all)")
    parser.add_argument(
        "--positions", type=positions, metavar="N", help="token positions to compare with --model (default: 2048)"
    )
    parser.add_argument(
        "--data",
        metavar="FILE|DIR",
        help=f"held-out text for --model: {HELD_OUT_HELP} (default: text of Python's standard library)",
    )
    parser.add_argument(
        "--byte-proof",
        choices=BYTE_PROOFS,
        help="rows of each tensor to derive again from --model and compare byte for byte (default: all)",
    )
    parser.add_argument(
        "--imatrix", metavar="FILE", help="the importance matrix that the files were quantized with, for --model"
    )
    parser.add_argument("--threads", type=threads, metavar="N", help="CPU threads (default: all physical cores)")
    parser.add_argument("--save-fixture", metavar="FILE", help="save the fixture that --model computes")
    add_json(parser)
    parser.exit_codes = {
        ExitCode.DONE: "all files agree",
        ExitCode.FAILED: "a file differs",
        ExitCode.MISTAKE: "wrong usage; nothing was compared",
    }
    parser.examples = (
        ("cockpit parity last", "Compare the files of the newest run's export with its fixture."),
        ("cockpit parity model-Q8_0.gguf --model ./model", "Compare a GGUF file from elsewhere with its source model."),
        ("cockpit parity last:gguf --runner './run.sh {gguf} {prompt_ids}'", "Test another runtime on an export."),
    )


def run(args: argparse.Namespace) -> ExitCode:
    """Compare; exit code 0 if everything agrees, else 1."""
    root = runs_root(args.runs_dir)
    source = _with_model(args) if args.model else _without_model(root, args.source)
    files = _of_types(source.files, args.types)
    job = {
        "fixture": str(source.fixture) if source.fixture else None,
        "model": str(Path(args.model).expanduser().absolute()) if args.model else None,
        "files": [str(file) for file in files],
        "runner": args.runner,
        "timeout_s": args.timeout,
        "threads": args.threads,
        "positions": args.positions,
        "data": str(_text(args.data)) if args.data else None,
        "byte_proof": args.byte_proof,
        "imatrix": str(_matrix(args.imatrix)) if args.imatrix else None,
        "save": str(Path(args.save_fixture).expanduser().absolute()) if args.save_fixture else None,
    }
    live = sys.stderr.isatty() and not args.json
    return follow_job(
        "exporters.proof.parity_run", job, lambda line: _show(line, live=live, as_json=args.json), COMPARE_NEEDS
    )


def _with_model(args: argparse.Namespace) -> _Source:
    _folder(args.model, "--model")
    files = [Path(name).expanduser().absolute() for name in args.source]
    for file in files:
        if not file.is_file():
            raise OperatorError(f"no file {printable(str(file), 400)}", "with --model, give GGUF files")
    return _Source(None, _firsts(files))


def _firsts(files: list[Path]) -> list[Path]:
    """The files without the further parts of split models whose first part is among them."""
    further = {part for file in files for part in part_paths(file)[1:] if part_paths(file)[0] == file}
    return [file for file in files if file not in further]


def _without_model(root: Path, given: Sequence[str]) -> _Source:
    """The files of an export, with its fixture."""
    paths = [Path(name).expanduser().absolute() for name in given]
    if all(path.is_file() and path.suffix == ".gguf" for path in paths):
        homes = {path: made_from(path, [root]) for path in paths}
        if len(set(homes.values())) > 1:
            raise OperatorError("the files come from different exports", "compare the files of one export at a time")
        return _Source(_fixture_in(homes[paths[0]]), _firsts(paths))
    if len(given) > 1:
        raise OperatorError("SOURCE — several sources must all be .gguf files", "give one export, or only .gguf files")
    path = paths[0]
    if path.is_file():
        return _Source(path, _files_of(path))
    if path.is_dir() and not is_run_dir(path):
        return _Source(_fixture_in(path), _files_of(_fixture_in(path)))
    fixture = _fixture_in(_export_of(root, given[0]))
    return _Source(fixture, _files_of(fixture))


def _export_of(root: Path, given: str) -> Path:
    run_part, colon, stage = given.rpartition(":")
    if colon and run_part:
        return find_run(root, run_part).out(stage)
    found = find_run(root, given)
    exports = [
        view.name for view in read_now(found).state.stages if makes(view.kind, "gguf") and found.out(view.name).is_dir()
    ]
    if not exports:
        raise OperatorError(f"{found.id} has no finished export", f"see: cockpit show {found.id}")
    return found.out(exports[-1])


def _fixture_in(folder: Path) -> Path:
    path = folder / FIXTURE_FILE
    if not path.is_file():
        raise OperatorError(
            f"{folder} has no {FIXTURE_FILE}",
            "an export with parity_positions > 0 writes one; for files from elsewhere: cockpit parity FILE --model DIR",
        )
    return path


def _files_of(fixture: Path) -> list[Path]:
    """The files that a fixture lists, as far as they are in its folder."""
    try:
        listed = [str(item["file"]) for item in read_json(fixture)["files"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OperatorError(
            f"{fixture} is not a fixture file: {printable(str(error), 200)}", "an export writes fixture.json"
        ) from error
    files = [fixture.parent / name for name in listed if Path(name).name == name and (fixture.parent / name).is_file()]
    if not files:
        raise OperatorError(
            f"{fixture}: its folder contains none of the files it lists: {printable(', '.join(listed), 300)}",
            "put the fixture into their folder, or compare a file with its model: cockpit parity FILE --model DIR",
        )
    return files


def _of_types(files: list[Path], types: str | None) -> list[Path]:
    if types is None:
        return files
    wanted = [name.strip().upper() for name in types.split(",") if name.strip()]
    chosen = [file for file in files if any(without_shard(file.stem).upper().endswith(f"-{name}") for name in wanted)]
    if not chosen:
        names = ", ".join(file.name for file in files)
        raise OperatorError(f"--types — no file of {printable(types, 100)}; the export has {printable(names, 400)}")
    return chosen


def _text(given: str) -> Path:
    place = Path(given).expanduser().absolute()
    if not place.exists():
        raise OperatorError(f"--data — no file or folder {printable(str(place), 400)}", "give a text file or a folder")
    return place


def _matrix(given: str) -> Path:
    path = Path(given).expanduser().absolute()
    if not path.is_file():
        raise OperatorError(
            f"--imatrix — no file {printable(str(path), 400)}", "give the importance matrix in GGUF form"
        )
    return path


def _folder(given: str, option: str) -> Path:
    folder = Path(given).expanduser().absolute()
    if not folder.is_dir():
        raise OperatorError(f"{option} — no folder {printable(str(folder), 400)}")
    return folder


def _show(line: dict[str, Any], *, live: bool, as_json: bool) -> None:
    match line:
        case {"error": error, "hint": hint}:
            say(error_text(error, hint), clear=live)
        case {"warning": text}:
            say(f"warning: {safe_text(text, 400)}", clear=live)
        case {"phase": phase} if not as_json:
            say(safe_text(phase, 200), end="" if live else "\n", clear=live)
        case {"progress": {"share": share}} if live:
            say(fmt.share_done(share), end="", clear=True)
        case {"result": report}:
            say("", end="", clear=live)
            if as_json:
                print_json(report, flush=True)
            else:
                print_out("\n".join(_report_lines(report)), flush=True)


def _report_lines(report: dict[str, Any]) -> list[str]:
    lines = []
    models = [_model_row(item) for item in report["files"] if "quality" in item]
    proofs = [_proof_row(item) for item in report["files"] if "bytes" in item]
    if proofs:
        lines += [*text_table(_PROOF_TITLES, proofs, right=range(1, 4)), ""]
    if models:
        lines += [*text_table(_MODEL_TITLES, models, right=range(1, 6)), ""]
    rows = [_runtime_row(item, result) for item in report["files"] for result in item["runtimes"]]
    lines += text_table(_TITLES, rows, right=(3, 4, 5))
    problems = [problem for item in report["files"] for problem in (f"{item['file']}: {p}" for p in item["problems"])]
    return [
        *lines,
        "",
        *(f"✗ {safe_text(problem, 500)}" for problem in problems),
        *([] if problems else ["✓ everything agrees"]),
    ]


def _proof_row(item: dict[str, Any]) -> list[str]:
    proof, meaning = item["bytes"], item["meaning"]
    rows = "" if proof["rows"] == "all" else ", sampled rows"
    by_value = f", {proof['by_value']} by value" if proof["by_value"] else ""
    return [
        safe_text(item["file"], 60),
        f"{proof['equal']} of {proof['tensors']} equal{by_value}{rows}",
        fmt.duration(proof["seconds"]),
        f"{meaning['found']} differ" if meaning["found"] else "as the model's",
    ]


def _model_row(item: dict[str, Any]) -> list[str]:
    quality, behaviour = item["quality"], item["behaviour"]
    values = [
        fmt.number(behaviour["mean_kl"]) if behaviour["weights"] == "file" else "",
        "" if behaviour["limits"]["mean_kl"] is None else fmt.number(behaviour["limits"]["mean_kl"]),
        fmt.number(quality["mean_kl"]),
        fmt.percent(quality["top1"], 2),
        fmt.number(quality["perplexity"]),
    ]
    return [safe_text(item["file"], 60), *values, quality["light"] or ""]


def _runtime_row(item: dict[str, Any], result: dict[str, Any]) -> list[str]:
    passed = not result["failures"] and all(agreement["passed"] for agreement in result["agreements"])
    verdict = "agrees" if passed else "differs" if result["judged"] else "differs (not judged: rounded weights)"
    delta = "" if result["max_delta"] is None else fmt.number(result["max_delta"], 3)
    return [
        safe_text(item["file"], 60),
        safe_text(result["runtime"], 40),
        result["against"],
        f"{result['equal']}/{result['tokens']}",
        delta,
        fmt.duration(result["seconds"]),
        verdict,
    ]
