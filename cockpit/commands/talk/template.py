"""The options that say how prompts become text."""

from __future__ import annotations

import argparse
from pathlib import Path

from cockpit.command_line.parser import CommandParser
from engines.files import read_regular_text
from recipes.problems import OperatorError, printable

MAX_TEMPLATE_BYTES = 1 << 20


def add_template(parser: CommandParser) -> None:
    """Add `--chat-template` and `--plain`."""
    parser.add_argument("--chat-template", metavar="FILE", help="a chat template (default: the model's own)")
    parser.add_argument("--plain", action="store_true", help="prompts are texts to continue, without a chat template")


def template_of(args: argparse.Namespace) -> str:
    """The text of the given chat template; empty without one.

    Raises:
        OperatorError: the file cannot be read.
    """
    if args.chat_template is None:
        return ""
    file = Path(args.chat_template).expanduser()
    try:
        return read_regular_text(file, MAX_TEMPLATE_BYTES)
    except (OSError, ValueError) as error:
        name = printable(str(file), 400)
        raise OperatorError(f"--chat-template — {name} cannot be read: {printable(str(error), 200)}") from error
