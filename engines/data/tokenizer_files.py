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


def copy_tokenizer(target: Path, *sources: Path) -> list[str]:
    """Copy the tokenizer's files into `target`, each from the first folder that has it; returns their names."""
    copied = []
    for name in NAMES:
        source = next((folder / name for folder in sources if (folder / name).is_file()), None)
        if source is not None:
            shutil.copyfile(source, target / name)
            copied.append(name)
    return copied
