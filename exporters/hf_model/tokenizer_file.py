"""Reads and validates tokenizer.json; an error names the place in the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engines.json_text import read_object
from recipes.problems import OperatorError, printable, shown

_STEPS = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers"}
SHOWN = 5


def read_tokenizer(path: Path, rows: int) -> dict[str, Any]:
    """A tokenizer.json whose parts that the exporters read have the expected structure.

    Args:
        path: the file.
        rows: rows of the model's embedding; ids must be below it, so that a huge id cannot make a huge vocabulary.

    Raises:
        OperatorError: the file is not a JSON object or a part has another structure; one line for each of the first
            `SHOWN` problems.
    """
    tokenizer = read_object(path)
    problems = [*_steps(tokenizer), *_model(tokenizer.get("model"), rows), *_added(tokenizer.get("added_tokens"), rows)]
    if problems:
        more = [f"{path}: and {len(problems) - SHOWN} more problems"] if len(problems) > SHOWN else []
        raise OperatorError("\n".join([*(f"{path}: {problem}" for problem in problems[:SHOWN]), *more]))
    return tokenizer


def _model(model: Any, rows: int) -> list[str]:
    if model is None:
        return []
    if not isinstance(model, dict):
        return [f"model — got {shown(model)}; allowed a table"]
    if model.get("type") != "BPE":  # the caller reports an unsupported type
        return []
    vocab, merges = model.get("vocab"), model.get("merges")
    problems = []
    if not isinstance(vocab, dict):
        problems.append(f"model.vocab — got {shown(vocab)}; allowed a table of token = id")
    else:
        problems += [
            f"model.vocab: {printable(text)} — got id {shown(index)}; allowed {_ids(rows)}"
            for text, index in vocab.items()
            if not _is_id(index, rows) or not _is_text(text)
        ]
        if not problems and len(set(vocab.values())) < len(vocab):
            problems.append("model.vocab — two tokens have the same id")
    if not isinstance(merges, list):
        problems.append(f"model.merges — got {shown(merges)}; allowed a list of pairs")
    else:
        problems += [
            f"model.merges[{number}] — got {shown(merge)}; allowed two texts, in a list or separated by a space"
            for number, merge in enumerate(merges)
            if not _is_pair(merge)
        ]
    return problems


def _added(added: Any, rows: int) -> list[str]:
    if added is None:
        return []
    if not isinstance(added, list):
        return [f"added_tokens — got {shown(added)}; allowed a list"]
    problems = []
    for number, token in enumerate(added):
        if not isinstance(token, dict) or not _is_text(token.get("content")):
            problems.append(f"added_tokens[{number}] — got {shown(token)}; allowed a table with content and id")
        elif not _is_id(token.get("id"), rows):
            problems.append(f"added_tokens[{number}].id — got {shown(token.get('id'))}; allowed {_ids(rows)}")
    return problems


def _steps(tokenizer: dict[str, Any]) -> list[str]:
    """Problems of normalizer and pre-tokenizer: each must be null, a table, or a sequence of tables."""
    problems = []
    for key, inner in _STEPS.items():
        step = tokenizer.get(key)
        if step is None:
            continue
        parts = step.get(inner, []) if isinstance(step, dict) else None
        if not isinstance(parts, list) or not all(_is_step(part) for part in [step, *parts]):
            problems.append(f"{key} — got {shown(step)}; allowed a step, or a sequence of steps")
    return problems


def _is_step(part: Any) -> bool:
    return isinstance(part, dict) and isinstance(part.get("pattern", {}), dict)


def _is_text(value: Any) -> bool:
    """Whether the value is text that UTF-8 can encode; half a surrogate pair is not."""
    return isinstance(value, str) and (value.isascii() or not any("\ud800" <= char <= "\udfff" for char in value))


def _is_pair(merge: Any) -> bool:
    if isinstance(merge, str):
        return _is_text(merge) and " " in merge
    return isinstance(merge, list) and len(merge) == 2 and all(_is_text(part) for part in merge)


def _is_id(value: Any, rows: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < rows


def _ids(rows: int) -> str:
    return f"a whole number from 0 to {rows - 1}: the embedding has {rows} rows"
