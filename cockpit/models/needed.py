"""Which files of a repository a model needs: settings, tokenizer, template, licence and weights; never code."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

from engines.artifacts.adapter_folder import ADAPTER_CONFIG
from recipes.problems import OperatorError, printable

_SMALL = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model",
    "chat_template.jinja", "chat_template.json", "preprocessor_config.json", "processor_config.json",
    ADAPTER_CONFIG, "README.md", "LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "NOTICE",
    "model.safetensors.index.json",
)  # fmt: skip
_WHOLE = re.compile(r"(?:adapter_)?model(?:-\d{5}-of-\d{5})?\.safetensors")
_PICKLES = re.compile(r"(?:adapter_model|pytorch_model(?:-\d{5}-of-\d{5})?)\.bin|pytorch_model\.bin\.index\.json")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._ -]{0,199}(?:/[A-Za-z0-9][A-Za-z0-9._ -]{0,199}){0,8}")
"""Names that can be written: no hidden file, no way out of the folder."""
_TAKEN = (".safetensors", ".gguf", ".json", ".model", ".jinja", ".txt", ".md")
"""Endings of files that may be named."""


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository.

    Attributes:
        name: its path in the repository.
        size: in bytes, as the hub says it.
        sha256: of its content, for files that the hub keeps apart (LFS); empty for others.
        blob: git's SHA-1 of its content; empty if the hub does not say it.
    """

    name: str
    size: int
    sha256: str = ""
    blob: str = ""

    @property
    def provable(self) -> bool:
        """Whether the hub states a hash with which the content can be compared."""
        return bool(self.sha256 or self.blob)


def needed(files: Sequence[RemoteFile], patterns: Sequence[str]) -> list[RemoteFile]:
    """The files of a model.

    Weights are safetensors files where there are any: of the parts that transformers reads, not copies in other
    formats. Files in folders are left out.

    Args:
        files: all files of the repository.
        patterns: names of files to take instead, such as `*Q4_K_M.gguf`.

    Raises:
        OperatorError: a pattern names no file, the repository has no weights, or a needed file cannot be verified or
            written beside the others.
    """
    usable = [one for one in files if _NAME.fullmatch(one.name) and ".." not in one.name]
    taken = _named(usable, patterns) if patterns else _of_a_model(usable)
    _check(files, taken)
    return taken


def _check(files: Sequence[RemoteFile], taken: Sequence[RemoteFile]) -> None:
    """Refuse files without a hash, and names that the hub lists twice or as a folder too."""
    unproved = [one.name for one in taken if not one.provable]
    if unproved:
        raise OperatorError(
            f"the hub states no size or no hash of {printable(', '.join(unproved[:5]), 400)}, so that the content"
            " cannot be verified",
            "check HF_ENDPOINT: a mirror must state both",
        )
    names = {one.name for one in taken}
    counts = Counter(one.name for one in files)
    folders = {str(parent) for name in names for parent in PurePosixPath(name).parents}
    twice = sorted(name for name in names if counts[name] > 1 or name in folders)
    if twice:
        raise OperatorError(
            f"the hub lists {printable(twice[0], 200)} more than once, or as a folder too", "check HF_ENDPOINT"
        )


def _of_a_model(usable: Sequence[RemoteFile]) -> list[RemoteFile]:
    """The files of a model folder, small ones first."""
    flat = [one for one in usable if "/" not in one.name]
    small = [one for one in flat if one.name in _SMALL]
    safe = [one for one in flat if one.name.endswith(".safetensors")]
    weights = [one for one in safe if _WHOLE.fullmatch(one.name)] or safe
    weights = weights or [one for one in flat if _PICKLES.fullmatch(one.name)]
    if not weights:
        ggufs = sorted(one.name for one in usable if one.name.endswith(".gguf"))
        if ggufs:
            raise OperatorError(
                f"the repository has {len(ggufs)} GGUF files and no model folder",
                f"name one: --file {printable(ggufs[0], 200)}; it has {printable(', '.join(ggufs[:12]), 900)}",
            )
        raise OperatorError("the repository has no weights: no .safetensors file", "check the id")
    return sorted({one.name: one for one in [*small, *weights]}.values(), key=lambda one: (one.size, one.name))


def is_pickle(file: RemoteFile) -> bool:
    """Whether a file's weights are a pickle, which can run code where it is loaded."""
    return file.name.endswith(".bin")


def _named(files: Sequence[RemoteFile], patterns: Sequence[str]) -> list[RemoteFile]:
    found: dict[str, RemoteFile] = {}
    for pattern in patterns:
        fitting = [one for one in files if fnmatchcase(one.name, pattern)]
        taken = [one for one in fitting if one.name.endswith(_TAKEN)]
        if not taken:
            what = "code or of another kind that is not taken" if fitting else "not in the repository"
            raise OperatorError(
                f"--file — {printable(pattern, 200)} is {what}",
                f"its files are {printable(', '.join(one.name for one in files[:20]), 900)}",
            )
        found |= {one.name: one for one in taken}
    return sorted(found.values(), key=lambda one: (one.size, one.name))
