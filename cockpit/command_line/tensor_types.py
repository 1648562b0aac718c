"""Reads the tensor types of a command line: pairs, or a recipe whose export names them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from exporters.gguf.own_types import OPTION, checked_tensor_types
from recipes.problems import OperatorError, printable
from recipes.toml_read import parse, read_text

FIELD = "tensor_types"


def read_tensor_types(text: str) -> dict[str, str]:
    """Tensor types by name.

    Args:
        text: `name=type,name=type`, or a recipe file that ends with .toml and has one export stage with `tensor_types`.

    Raises:
        OperatorError: it names no types, or unknown ones; every wrong pair is reported.
    """
    given = _of_recipe(Path(text).expanduser()) if text.endswith(".toml") else _pairs(text)
    return checked_tensor_types(given)


def _pairs(text: str) -> dict[str, object]:
    pairs = [part.partition("=") for part in text.split(",") if part.strip()]
    if not pairs or not all(sign and name.strip() for name, sign, _ in pairs):
        raise OperatorError(
            f"{OPTION} — got {printable(text, 80)}; allowed NAME=TYPE,NAME=TYPE or a recipe file (.toml)",
            "for example ffn_down=Q6_K,token_embd=Q8_0",
        )
    return {name.strip(): value.strip() for name, _, value in pairs}


def _of_recipe(path: Path) -> dict[str, object]:
    data, _ = parse(read_text(path), path)
    stages = data.get("stage")
    tables: list[Any] = [data, *(stages if isinstance(stages, list) else [])]
    found = [table[FIELD] for table in tables if isinstance(table, dict) and isinstance(table.get(FIELD), dict)]
    if len(found) != 1:
        raise OperatorError(
            f"{OPTION} — {path} has {len(found)} tables {FIELD}; expected one", "name the recipe of one export"
        )
    return dict(found[0])
