"""Compares the tokenizer that transformers loads with tokenizer.json, before an export writes or measures anything."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from engines.data.tokenizer_class import check_tokenizer_class


def check_tokenizer(folder: Path, warn: Callable[[str], None]) -> None:
    """Refuse a folder with two tokenizers: a file has that of tokenizer.json, and transformers compares with its own.

    A tokenizer that transformers cannot load is not compared; the steps that need it say so.

    Raises:
        OperatorError: ordinary texts have other ids in transformers than by tokenizer.json.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError):
        return
    for warning in check_tokenizer_class(folder, tokenizer, exact=True):
        warn(warning)
