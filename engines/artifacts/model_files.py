"""The files that decide what a model answers, and the identity that evaluations give it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

from engines.artifacts.adapter_folder import ADAPTER_CONFIG
from engines.files import file_sha256

_NAMES = ("*.safetensors", "config.json", ADAPTER_CONFIG, "tokenizer.json", "tokenizer.model")


def weights_of(folders: Sequence[Path]) -> list[Path]:
    """The files that decide what a model answers, in its folders: weights, config, adapter, tokenizer."""
    return [file for folder in folders for name in _NAMES for file in sorted(folder.glob(name)) if file.is_file()]


def sha256_of(files: Sequence[Path], digest: Callable[[Path], str] = file_sha256) -> str:
    """SHA-256 (hex) of the contents of files, by their names; a single file has its own.

    Args:
        files: the files.
        digest: gives the SHA-256 of one of them.
    """
    if len(files) == 1:
        return digest(files[0])
    text = "".join(f"{file.name} {digest(file)}\n" for file in files)
    return hashlib.sha256(text.encode()).hexdigest()
