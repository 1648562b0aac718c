"""What the files of a tokenizer's folder say without a library: its end token, and why it cannot encode documents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engines.json_text import read_json, read_object
from recipes.problems import OperatorError

PIECES_FILE = "tokenizer.model"
WHOLE_FILE = "tokenizer.json"
SETTINGS = ("tokenizer_config.json", "special_tokens_map.json")


def tokenizer_problems(folder: Path, eos_token: str | None) -> list[OperatorError]:
    """What the files show before a stage encodes with them; the stage itself finds more.

    Args:
        folder: the tokenizer's folder.
        eos_token: the end token that the stage names.
    """
    has_pieces, has_whole = (folder / PIECES_FILE).is_file(), (folder / WHOLE_FILE).is_file()
    if not has_pieces and not has_whole:
        return [no_tokenizer(folder)]
    found = []
    if has_whole:
        try:
            refuse_dropout(folder / WHOLE_FILE, read_object(folder / WHOLE_FILE))
        except OperatorError as error:
            found.append(error)
    if has_whole and not has_pieces and not (eos_token or end_token(folder)):
        found.append(
            OperatorError(
                f"{folder / SETTINGS[0]}: eos_token — missing, so nothing ends a document", "set eos_token in the stage"
            )
        )
    return found


def no_tokenizer(folder: Path) -> OperatorError:
    """The error of a folder without a file of a tokenizer."""
    return OperatorError(
        f"{folder} has no tokenizer: neither {WHOLE_FILE} nor {PIECES_FILE} exists",
        "give a tokenizer stage or a model's folder; for a tokenizer in another form, write tokenizer.json first:"
        " AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)",
    )


def refuse_dropout(path: Path, content: dict[str, Any]) -> None:
    """Refuse a tokenizer.json that skips merges at random: the same text would have other tokens each time, here and in
    every program that reads the file.

    Raises:
        OperatorError: it does.
    """
    model = content.get("model")
    dropout = model.get("dropout") if isinstance(model, dict) else None
    if isinstance(dropout, int | float) and dropout > 0:
        raise OperatorError(
            f"{path}: model.dropout — encodes the same text with other tokens each time; got {dropout}; allowed null"
            " or 0",
            "set model.dropout to null in this file",
        )


def end_token(folder: Path) -> str | None:
    """The tokenizer's `eos_token`, as its settings spell it."""
    for name in SETTINGS:
        try:
            settings = read_json(folder / name)
        except (OSError, ValueError):
            continue
        found = settings.get("eos_token") if isinstance(settings, dict) else None
        found = found.get("content") if isinstance(found, dict) else found
        if isinstance(found, str) and found:
            return found
    return None
