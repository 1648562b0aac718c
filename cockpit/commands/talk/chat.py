"""`cockpit chat MODEL [MODEL]`: talk with one model, or with two side by side; on the screen or as lines."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from cockpit.command_line.arguments import threads
from cockpit.command_line.parser import CommandParser
from cockpit.commands.talk.template import add_template, template_of
from cockpit.runs.find import runs_root
from cockpit.talking.conversation import append_row
from cockpit.talking.model_place import MODEL_HELP, model_place
from cockpit.talking.plain import Manner, talk_without_screen
from cockpit.talking.sampling_options import add_sampling, sampling_of
from cockpit.talking.target import ChatTarget
from engines.chatting.lines import Job
from engines.words import ExitCode
from recipes.problems import OperatorError, printable

MAX_PROMPT = 1 << 20


def declare(parser: CommandParser) -> None:
    """The arguments of `cockpit chat`."""
    parser.add_argument("models", nargs="+", metavar="MODEL", help=f"{MODEL_HELP}; two models get the same prompts")
    parser.add_argument("--adapter", metavar="FILE", help="a GGUF adapter over the GGUF file; it can be switched off")
    parser.add_argument("--without-adapter", action="store_true", help="begin with the adapter switched off")
    parser.add_argument("--system", default="", metavar="TEXT", help="the system prompt (default: none)")
    parser.add_argument("--prompt", metavar="TEXT", help="print the answer to this prompt and end")
    parser.add_argument("--save", metavar="FILE", help="add the conversations to this file, as rows of messages")
    add_template(parser)
    add_sampling(parser)
    parser.add_argument(
        "--threads", type=threads, metavar="N", help="CPU threads of each model (default: half of the free cores)"
    )
    parser.add_argument("--json", action="store_true", help="without the screen: print one JSON object for each answer")
    parser.exit_codes = {
        ExitCode.DONE: "every prompt was answered, or the screen was closed",
        ExitCode.FAILED: "a prompt has no answer",
        ExitCode.MISTAKE: "wrong usage, or a model cannot be loaded",
    }
    parser.examples = (
        ("cockpit chat last", "Talk with the newest result of the newest run."),
        ("cockpit chat ./base last:tuned --system 'Answer in JSON.'", "Give two models the same prompts."),
        ("cockpit chat m-Q4_K_M.gguf --prompt 'Which city?'", "Print one answer."),
        ("cockpit chat ./model --json", "Answer each line of standard input, as the turns of one conversation."),
    )


def run(args: argparse.Namespace) -> ExitCode:
    """Open the screen on a terminal, else answer a prompt or the lines of stdin."""
    target = _target(args)
    on_screen = args.prompt is None and not args.json and sys.stdin.isatty() and sys.stdout.isatty()
    if on_screen:
        code: ExitCode = args.open_screen(args.runs_dir, chat=target)
        return code
    if args.prompt is None and sys.stdin.isatty():
        raise OperatorError("--prompt — missing", "give a prompt, or prompts as lines of standard input")
    manner = Manner(
        sampling=target.sampling,
        system=target.system,
        adapter=target.adapter,
        as_json=args.json,
        keep=None if target.save is None else _keeper(target.save),
    )
    prompts = [args.prompt] if args.prompt is not None else _lines()
    return talk_without_screen(target.models, prompts, manner)


def _target(args: argparse.Namespace) -> ChatTarget:
    if len(args.models) > 2:
        raise OperatorError(f"MODEL — got {len(args.models)} models; allowed 1 or 2")
    if args.adapter is not None and len(args.models) > 1:
        raise OperatorError("--adapter — only with one MODEL")
    root = runs_root(args.runs_dir)
    template = template_of(args)
    adapter = None if args.adapter is None else str(Path(args.adapter).expanduser().absolute())
    models = [
        (
            given,
            Job(
                model=model_place(given, root),
                adapter=adapter,
                template=template,
                plain=args.plain,
                threads=args.threads,
            ),
        )
        for given in args.models
    ]
    return ChatTarget(
        models=tuple(models),
        sampling=sampling_of(args),
        system=args.system,
        adapter=not args.without_adapter,
        save=None if args.save is None else _writable(Path(args.save).expanduser().absolute()),
    )


def _writable(file: Path) -> Path:
    if not file.parent.is_dir() or file.is_dir():
        raise OperatorError(f"--save — {printable(str(file), 400)} is not a file in a folder that exists")
    return file


def _keeper(file: Path) -> Callable[[str], None]:
    def keep(row: str) -> None:
        if row:
            append_row(file, row)

    return keep


def _lines() -> Iterator[str]:
    """The lines of stdin that have text."""
    lines: Iterable[str] = sys.stdin
    for number, line in enumerate(lines, start=1):
        if len(line) > MAX_PROMPT:
            raise OperatorError(f"standard input, line {number}: longer than {MAX_PROMPT} characters")
        if line.strip():
            yield line.rstrip("\n")
