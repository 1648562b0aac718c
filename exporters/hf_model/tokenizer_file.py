"""tokenizer.json as others wrote it: read, and refused by place where it is not what it should be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engines.json_text import read_object
from recipes.problems import OperatorError, printable, shown

_STEPS = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers"}
SHOWN = 5


def read_tokenizer(path: Path, rows: int) -> dict[str, Any]:
    """A tokenizer.json whose parts that are read here have the shapes that are read.

    Args:
        path: the file.
        rows: rows of the model's embedding: no token has a higher id, so that no id makes a vocabulary of its size.

    Raises:
        OperatorError: it is no JSON object, or a part of it cannot be; every kind of mistake has a line.
    """
    tokenizer = read_object(path)
    problems = [*_steps(tokenizer), *_model(tokenizer.get("model"), rows), *_added(tokenizer.get("added_tokens"), rows)]
    if problems:
        more = [f"{path}: and {len(problems) - SHOWN} more like these"] if len(problems) > SHOWN else []
        raise OperatorError("\n".join([*(f"{path}: {problem}" for problem in problems[:SHOWN]), *more]))
    return tokenizer


def _model(model: Any, rows: int) -> list[str]:
    if model is None:
        return []
    if not isinstance(model, dict):
        return [f"model — got {shown(model)}; allowed a table"]
    if model.get("type") != "BPE":  # whoever reads the file says what it needs
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
            f"model.merges[{number}] — got {shown(merge)}; allowed two texts, as a list or with a space between"
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
    """Normalizer and pre-tokenizer are tables, or nothing; one that is a sequence has tables in its list."""
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
    """Text that has bytes: half a surrogate pair has none."""
    return isinstance(value, str) and (value.isascii() or not any("\ud800" <= char <= "\udfff" for char in value))


def _is_pair(merge: Any) -> bool:
    if isinstance(merge, str):
        return _is_text(merge) and " " in merge
    return isinstance(merge, list) and len(merge) == 2 and all(_is_text(part) for part in merge)


def _is_id(value: Any, rows: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < rows


def _ids(rows: int) -> str:
    return f"a whole number from 0 to {rows - 1}: the embedding has {rows} rows"
