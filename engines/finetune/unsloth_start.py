"""The start of Unsloth in an engine's process: before transformers, PEFT and TRL, which it changes."""

from __future__ import annotations

import importlib
import os
import sys
from importlib import metadata

from engines.context import StageContext
from engines.exhausted_memory import exhausted_memory
from recipes.problems import OperatorError, printable
from recipes.stages.fields import StageFields
from recipes.stages.kind import TESTED, UNSLOTH

WAY_OUT = 'name an interpreter with these versions in python, or set backend = "hf"'


def start(ctx: StageContext[StageFields]) -> None:
    """Import Unsloth with its files in the attempt's work folder, and without its request to a model hub.

    Raises:
        OperatorError: a package is missing or has an untested version, or Unsloth does not start on this machine.
    """
    wrong = mismatches({name: _version(name) for name in TESTED["unsloth"]})
    if wrong:
        raise OperatorError(f"backend — {sys.executable} {'; '.join(wrong)}", WAY_OUT)
    os.environ["UNSLOTH_COMPILE_LOCATION"] = str(ctx.work / "unsloth")
    os.environ["UNSLOTH_DISABLE_STATISTICS"] = "1"
    try:
        importlib.import_module("unsloth")
    except Exception as error:  # whatever a library raises as it looks at the machine
        if exhausted_memory(error):
            raise
        version = metadata.version("unsloth")
        raise OperatorError(
            f"backend — Unsloth {version} does not start in {sys.executable}: {printable(first_line(error), 400)}",
            'install what it needs there, choose other devices, or set backend = "hf"',
        ) from error


def mismatches(found: dict[str, str | None]) -> list[str]:
    """What an interpreter's packages lack for Unsloth, as ends of a sentence that begins with the interpreter."""
    missing = [name for name in (*UNSLOTH, *TESTED["unsloth"]) if name in found and found[name] is None]
    other = [
        f"has {name} {version}; backend = unsloth is tested with {tested}.*"
        for name, tested in TESTED["unsloth"].items()
        if (version := found.get(name)) and not version.startswith(tested + ".")
    ]
    return [*([f"lacks {', '.join(dict.fromkeys(missing))}"] if missing else []), *other]


def first_line(error: BaseException) -> str:
    """The kind of an error and the first line of its text."""
    said = str(error).strip().splitlines()
    return f"{type(error).__name__}: {said[0]}" if said else type(error).__name__


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
