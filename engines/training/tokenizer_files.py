"""Copy the files of a tokenizer byte for byte: a model folder needs them for merging, conversion and chat."""

from __future__ import annotations

import shutil
from pathlib import Path

NAMES = (
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
)


def copy_tokenizer(source: Path, target: Path) -> list[str]:
    """Copy the tokenizer files that exist from one folder into another; returns their names."""
    copied = [name for name in NAMES if (source / name).is_file()]
    for name in copied:
        shutil.copyfile(source / name, target / name)
    return copied
