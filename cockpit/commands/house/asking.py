"""A question before something is removed."""

from __future__ import annotations

import sys

from cockpit.text.output import say
from recipes.problems import OperatorError


def confirmed(question: str, *, yes: bool) -> bool:
    """Whether the operator agrees; only "y" or "yes" does.

    Raises:
        OperatorError: `--yes` was not given, and there is no terminal to ask on.
    """
    if yes:
        return True
    if not sys.stdin.isatty():
        raise OperatorError(f"{question} — there is no terminal to ask on; nothing was removed", "to agree: --yes")
    say(f"{question} [y/N] ", end="")
    return sys.stdin.readline().strip().lower() in {"y", "yes"}
