"""Saved prompts: a file of lines that an operator may edit, `{"name", "prompt", "system"}` each."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from engines.files import read_regular_text, write_durably
from engines.json_text import parse_json
from recipes.problems import OperatorError, printable

MAX_BYTES = 4 * 1024 * 1024
MAX_NAME = 60


@dataclass(frozen=True)
class SavedPrompt:
    """A named prompt, with a system prompt that may be empty."""

    name: str
    prompt: str
    system: str = ""


def prompts_file() -> Path:
    """Where they are: $XDG_STATE_HOME/cockpit/prompts.jsonl, by default ~/.local/state/cockpit/prompts.jsonl."""
    given = Path(os.environ.get("XDG_STATE_HOME") or "")
    state = given if given.is_absolute() else Path("~/.local/state").expanduser()
    return state / "cockpit" / "prompts.jsonl"


def read_prompts(file: Path) -> list[SavedPrompt]:
    """The saved prompts in the order of the file; none if there is no file.

    Raises:
        OperatorError: the file cannot be read, or a line is not a saved prompt.
    """
    try:
        text = read_regular_text(file, MAX_BYTES)
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise OperatorError(f"{printable(str(file), 400)} cannot be read: {printable(str(error), 200)}") from error
    found = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = parse_json(line)
            one = SavedPrompt(**{key: value[key] for key in ("name", "prompt", "system") if key in value})
        except (ValueError, TypeError) as error:
            raise _bad_line(file, number) from error
        if not all(isinstance(text, str) for text in (one.name, one.prompt, one.system)) or not one.name.strip():
            raise _bad_line(file, number)
        found.append(one)
    return found


def save_prompt(file: Path, one: SavedPrompt) -> None:
    """Add a prompt, or replace the one of this name.

    Raises:
        OperatorError: the name is empty or too long, or the file cannot be read or written.
    """
    if not 0 < len(one.name.strip()) <= MAX_NAME:
        raise OperatorError(f"name — got {len(one.name)} characters; allowed 1 to {MAX_NAME}")
    kept = [other for other in read_prompts(file) if other.name != one.name]
    _write(file, [*kept, one])


def remove_prompt(file: Path, name: str) -> None:
    """Remove the prompt of this name.

    Raises:
        OperatorError: the file cannot be read or written.
    """
    _write(file, [one for one in read_prompts(file) if one.name != name])


def _write(file: Path, prompts: Sequence[SavedPrompt]) -> None:
    lines = []
    for one in prompts:
        value = {"name": one.name, "prompt": one.prompt} | ({"system": one.system} if one.system else {})
        lines.append(json.dumps(value, ensure_ascii=False) + "\n")
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_durably(file, "".join(lines).encode("utf-8", errors="replace"))
    except OSError as error:
        raise OperatorError(
            f"{printable(str(file), 400)} cannot be written: {error.strerror or error}",
            "set XDG_STATE_HOME to a folder that you can write",
        ) from error


def _bad_line(file: Path, number: int) -> OperatorError:
    return OperatorError(
        f'{printable(str(file), 400)}:{number}  not a saved prompt; expected {{"name": …, "prompt": …}}',
        "correct or remove the line",
    )
