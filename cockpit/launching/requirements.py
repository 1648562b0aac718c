"""Whether installed packages can be imported: one whose own requirement is missing is there, and cannot be used.

The functions are sent to other interpreters as text, so each imports what it uses.
"""

from __future__ import annotations

import inspect
import subprocess
from collections.abc import Callable, Iterable
from typing import Any

from engines.json_text import parse_json
from recipes.problems import printable

IMPORT_TIMEOUT_S = 180.0


def unmet(names: list[str]) -> dict[str, str]:
    """Distributions that are missing and that one of these, or of what they need, requires; each with one that does.

    Only what the metadata say: another program may have installed the same modules under another name.
    """
    from importlib import metadata

    try:
        from packaging.requirements import InvalidRequirement, Requirement
    except ImportError:
        return {}
    missing: dict[str, str] = {}
    seen: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        key = name.lower().replace("_", "-")
        if key in seen:
            continue
        seen.add(key)
        try:
            texts = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        for text in texts:
            try:
                needed = Requirement(text)
            except InvalidRequirement:
                continue
            if needed.marker is not None and not needed.marker.evaluate({"extra": ""}):
                continue
            try:
                metadata.version(needed.name)
            except metadata.PackageNotFoundError:
                missing.setdefault(needed.name, name)
            else:
                waiting.append(needed.name)
    return missing


def import_all(names: list[str]) -> dict[str, str]:
    """Import distributions by their usual module; why not, for each that fails."""
    import importlib

    failed: dict[str, str] = {}
    for name in names:
        try:
            module = importlib.import_module(name.replace("-", "_"))
            if name == "transformers":  # it imports its parts at first use
                module.Trainer  # noqa: B018
        except Exception as error:  # noqa: BLE001 - whatever a library raises when it is imported
            last = error
            while last.__cause__ is not None or last.__context__ is not None:
                last = last.__cause__ or last.__context__  # type: ignore[assignment]
            failed[name] = f"{type(last).__name__}: {last}"
    return failed


def source(function: Callable[..., Any]) -> str:
    """The text of one of the functions here, for an interpreter that has not this module."""
    return inspect.getsource(function)


def cannot_import(python: str, packages: Iterable[str], missing: dict[str, str]) -> str:
    """Why an interpreter cannot import packages of which a requirement is missing; empty if it can.

    Args:
        python: the interpreter.
        packages: distributions that a stage imports.
        missing: what `unmet` found there.
    """
    if not missing:
        return ""
    program = f"{source(import_all)}\nimport json, sys\nprint(json.dumps(import_all(sys.argv[1:])))"
    try:
        answer = subprocess.run(
            [python, "-c", program, *sorted(packages)],
            capture_output=True,
            text=True,
            timeout=IMPORT_TIMEOUT_S,
            check=True,
        )
        failed = dict(parse_json(answer.stdout.splitlines()[-1]))
    except (OSError, subprocess.SubprocessError, ValueError, LookupError, TypeError):
        return ""  # the engine says why it cannot start
    if not failed:
        return ""
    name, why = next(iter(sorted(failed.items())))
    lacks = ", ".join(f"{one} (for {owner})" for one, owner in sorted(missing.items()))
    return f"{python} has {name} and cannot import it: {printable(str(why), 200)}; it lacks {printable(lacks, 300)}"
