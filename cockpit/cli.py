"""The command line: what may be asked, in words; each command's work is in `cockpit/commands/`.

Nothing heavy is imported here, and nothing but this module opens the screens: `cockpit --help` costs a tenth of a
second, and headless commands never load Textual. stdout is output, stderr diagnostics.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn, TypeAlias

import cockpit
from engines.words import ExitCode

EPILOG = """RUN is a run's id, a unique prefix of it, its path, or: last. RECIPE is a path, or the name of a shipped recipe.
Exit codes: 0 done, 1 the run failed, 2 a mistake in what was asked, 3 a gate refused, 130 interrupted or stopped.
Without a command, cockpit opens its screen."""

_Add: TypeAlias = Callable[[str, str], argparse.ArgumentParser]
"""Adds one command: its name and what it does."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    args = build_parser().parse_args(argv)
    args.runs_dir = getattr(args, "runs_dir", None)
    args.open_screen = open_screen
    try:
        if args.command is None:
            return open_screen(args.runs_dir)
        code: int = importlib.import_module(f"cockpit.commands.{args.command}").run(args)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read our output has had enough (`| head -1`). Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.DONE
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EIO) or error.filename is not None:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.stderr.write(f"cockpit: the output cannot be written: {error.strerror}\n")
        return ExitCode.FAILED
    except _operators_mistakes() as error:  # looked up only when something was raised
        _tell(error)
        return ExitCode.MISTAKE
    return code


def open_screen(
    runs_dir: str | None, *, run: Path | None = None, replay: Path | None = None, speed: float | None = None
) -> int:
    """Open the terminal screen: at Home, at a run, or replaying a journal.

    Args:
        runs_dir: `--runs-dir` as given.
        run: directory of the run to open at.
        replay: run directory or journal file to play back.
        speed: playback speed, a multiple of real time; infinite for as fast as possible; None for the screen's own.
    """
    from cockpit.runs.find import runs_root
    from recipes.problems import OperatorError

    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise OperatorError("the screen needs a terminal", "without one: cockpit run, ls, show, attach, replay --plain")
    from cockpit.tui.app import CockpitApp

    CockpitApp(runs_root(runs_dir), open_run=run, replay=replay, speed=speed).run()
    return ExitCode.DONE


def _tell(error: Exception) -> None:
    """The mistake and what to do about it; both may quote names and paths, so they are made harmless first."""
    from cockpit.text.safe_text import safe_lines

    hint = str(getattr(error, "hint", ""))
    lines = [*safe_lines(f"cockpit: {error}"), *(f"  {line}" for line in safe_lines(hint) if line)]
    sys.stderr.write("\n".join(lines) + "\n")


def _operators_mistakes() -> tuple[type[Exception], ...]:
    """What is told in two lines; anything else is a fault of ours, and shows its traceback."""
    from engines.run_dir import RunDirError
    from recipes.problems import OperatorError

    return OperatorError, RunDirError


class _Parser(argparse.ArgumentParser):
    """Two lines on stderr instead of the whole usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(ExitCode.MISTAKE, f"cockpit: {message}\n  see: {self.prog} --help\n")


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = _Parser(prog="cockpit", description=cockpit.__doc__, epilog=EPILOG, formatter_class=formatter)
    parser.add_argument("--version", action="version", version=f"cockpit {cockpit.__version__}")
    _add_runs_dir(parser)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)

    def command(name: str, summary: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=summary, description=summary, epilog=EPILOG, formatter_class=formatter)
        _add_runs_dir(sub)
        return sub

    _add_launching(command)
    _add_looking(command)
    _add_steering(command)
    _add_making(command)
    _add_proving(command)
    return parser


def _add_launching(command: _Add) -> None:
    run = command("run", "launch a recipe and follow it; leaving never stops it")
    run.add_argument("recipe", metavar="RECIPE")
    _add_sets(run)
    run.add_argument("--name", help="name in the run's id, instead of the recipe's")
    run.add_argument("--stage", metavar="S", help="only this stage and what it needs")
    _add_following(run)
    check = command("check", "say everything that is wrong with a recipe; makes nothing")
    check.add_argument("recipe", metavar="RECIPE")
    _add_sets(check)
    _add_json(check)


def _add_looking(command: _Add) -> None:
    listing = command("ls", "list the runs, newest first")
    _add_json(listing)
    show = command("show", "one run: its stages, checkpoints, artifacts and numbers")
    _add_run(show)
    _add_json(show)
    attach = command("attach", "watch a run, on the screen or as lines; goes on with it if its supervisor died")
    _add_run(attach)
    _add_output(attach).add_argument("--plain", action="store_true", help="print lines instead of opening the screen")
    replay = command("replay", "play a past run back, on the screen or as lines")
    replay.add_argument("run", metavar="RUN|FILE")
    replay.add_argument("--speed", type=_speed, metavar="X|max", help="multiple of real time")
    how = replay.add_mutually_exclusive_group()
    how.add_argument("--plain", action="store_true", help="print lines instead of opening the screen")
    how.add_argument("--json", action="store_true", help="print the journal's lines")


def _add_proving(command: _Add) -> None:
    parity = command(
        "parity", "hold GGUF files against the model they come from, in llama.cpp and in any other runtime"
    )
    parity.add_argument(
        "source",
        nargs="+",
        metavar="RUN:STAGE|DIR|FIXTURE|FILE",
        help="a finished export, its fixture.json, or GGUF files",
    )
    parity.add_argument("--model", metavar="DIR", help="the Hugging Face folder that GGUF files claim to be")
    parity.add_argument(
        "--runner",
        metavar="CMD",
        help="another runtime, as 'CMD {gguf} {prompt_ids}'; it prints the ids it goes on with ({limit}, {stop_ids}, {seed} and"
        " {prompt} are there too)",
    )
    parity.add_argument(
        "--timeout", type=_seconds, metavar="S", help="seconds for one prompt in that runtime; 600 by default"
    )
    parity.add_argument("--types", metavar="T,T,…", help="only these file types of an export")
    parity.add_argument(
        "--positions", type=_positions, metavar="N", help="token positions compared with --model; 2048 by default"
    )
    parity.add_argument("--data", metavar="DIR|FILE", help="held-out text for that; the standard library's by default")
    parity.add_argument("--threads", type=_threads, metavar="N", help="CPU threads; all cores by default")
    parity.add_argument("--save-fixture", metavar="FILE", help="keep the fixture that is made of --model")
    _add_json(parity)
    verify = command("verify", "check every byte of an artifact, and of all that it was made from, by SHA-256")
    verify.add_argument("artifact", metavar="RUN|RUN:STAGE|DIR|FILE")
    _add_json(verify)


def _add_steering(command: _Add) -> None:
    stop = command("stop", "stop a run after a checkpoint, and wait until it has stopped")
    _add_run(stop)
    stop.add_argument("--now", action="store_true", help="at the next step, without a checkpoint")
    _add_json(stop)
    resume = command("resume", "go on with a run that ended: done stages stay, training goes on from its checkpoint")
    _add_run(resume)
    resume.add_argument("--stage", metavar="S", help="do this stage again, and what depends on it")
    resume.add_argument("--checkpoint", metavar="N", type=_step, help="from this step's checkpoint, not the newest")
    _add_following(resume)


def _add_making(command: _Add) -> None:
    merge = command("merge", "merge one adapter or several into their base model, as a run of its own")
    merge.add_argument("adapters", nargs="*", metavar="ADAPTER", help="a folder, or RUN:STAGE")
    merge.add_argument(
        "--adapter", action="append", default=[], metavar="ADAPTER", dest="more_adapters", help="likewise"
    )
    merge.add_argument("--model", metavar="DIR|RUN:STAGE", help="the base; by default the one the adapters name")
    merge.add_argument("--weights", metavar="W,W,…", help="how much of each adapter is added; 1 each by default")
    merge.add_argument("--dtype", choices=("base", "float32", "bfloat16", "float16"), help="type of the merged weights")
    merge.add_argument(
        "--base-rounding", choices=("none", "nf4", "nf4-double"), help="round the base to 4 bits first, as QLoRA saw it"
    )
    merge.add_argument(
        "--untie", action="store_true", help="give a tied model a head of its own where only one side changes"
    )
    _add_made(merge)
    export = command("export", "write GGUF files of a model and compare them with it, as a run of its own")
    export.add_argument("model", metavar="DIR|RUN:STAGE")
    export.add_argument("--types", metavar="T,T,…", help="file types, such as F16,Q8_0,Q4_K_M")
    export.add_argument(
        "--adapter", metavar="DIR|RUN:STAGE", help="merge it while the files are written; no merged copy is kept"
    )
    export.add_argument("--adapters", metavar="A,A,…", help="write these as GGUF adapters over the model")
    export.add_argument("--adapter-type", choices=("F16", "F32"), help="type of the GGUF adapters")
    export.add_argument("--data", metavar="DIR|FILE|RUN:STAGE", help="held-out text for the comparison")
    export.add_argument("--imatrix", choices=("auto", "always", "never"), help="importance matrix")
    export.add_argument("--converter", choices=("own", "upstream"), help="upstream: your llama.cpp checkout's")
    export.add_argument("--quantizer", choices=("auto", "llama-quantize", "kernels", "numpy"), help="what quantizes")
    export.add_argument("--llama-cpp", metavar="DIR", help="your llama.cpp")
    export.add_argument("--threads", type=_threads, metavar="N", help="CPU threads")
    export.add_argument("--parity-positions", metavar="N", help="token positions that are compared; 0 skips it")
    _add_made(export)
    quantize = command(
        "quantize", "quantize a GGUF file of full precision here and now; a model, as an export of its own"
    )
    quantize.add_argument("source", metavar="FILE|DIR|RUN:STAGE")
    quantize.add_argument("--types", metavar="T,T,…", help="file types; by default Q8_0,Q4_K_M")
    quantize.add_argument(
        "--imatrix",
        metavar="FILE|HOW",
        help="importance matrix: a file for a GGUF file; auto, always or never for a model",
    )
    quantize.add_argument("--out", metavar="DIR", help="where the files of a GGUF file go; beside it by default")
    quantize.add_argument(
        "--threads", type=_threads, metavar="N", help="CPU threads for a GGUF file; all cores by default"
    )
    quantize.add_argument("--data", metavar="DIR|FILE|RUN:STAGE", help="held-out text for a model's comparison")
    quantize.add_argument("--name", help="name in the id of a model's run")
    _add_following(quantize)


def _add_runs_dir(parser: argparse.ArgumentParser) -> None:
    # Accepted before and after the command; SUPPRESS keeps the one from erasing the other.
    text = "folder of the runs (or COCKPIT_RUNS_DIR)"
    parser.add_argument("--runs-dir", metavar="DIR", default=argparse.SUPPRESS, help=text)


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN")


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="as JSON")


def _add_sets(parser: argparse.ArgumentParser) -> None:
    text = "override a field: stage.field=value or defaults.kind.field=value; may be repeated"
    parser.add_argument("--set", action="append", default=[], metavar="K=V", dest="sets", help=text)


def _add_output(parser: argparse.ArgumentParser) -> argparse._MutuallyExclusiveGroup:
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="print the journal's lines, and nothing else")
    how.add_argument("--quiet", action="store_true", help="print nothing; the exit code tells")
    return how


def _add_made(parser: argparse.ArgumentParser) -> None:
    """What every command that makes a recipe of one stage takes."""
    parser.add_argument(
        "--set", action="append", default=[], metavar="FIELD=V", dest="sets", help="any other field of the stage"
    )
    parser.add_argument("--name", help="name in the run's id")
    _add_following(parser)


def _add_following(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--detach", action="store_true", help="launch, print the run's id and return")
    _add_output(parser)


def _speed(text: str) -> float:
    if text == "max":
        return float("inf")
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not value > 0:
        raise argparse.ArgumentTypeError(f"— must be above 0; got {text!r}; allowed a number such as 4, or max")
    return value


def _threads(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) <= 1024:
        raise argparse.ArgumentTypeError(f"— must be a number of threads; got {text!r}; allowed 1 to 1024")
    return int(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"— must be a time; got {text!r}; allowed seconds above 0")
    return value


def _positions(text: str) -> int:
    if not text.isdecimal() or not 2 <= int(text) <= 10_000_000:
        raise argparse.ArgumentTypeError(
            f"— must be a number of positions; got {text!r}; allowed a whole number from 2 on"
        )
    return int(text)


def _step(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"— must be a step; got {text!r}; allowed a whole number from 0 on")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
