"""Open token shards: raw little-endian integers, one file per split, described by tokens.json."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
import numpy.typing as npt

from engines.artifacts.data_folder import TOKENS_JSON
from engines.files import file_sha256, read_regular_bytes
from recipes.problems import OperatorError

TOKENIZER = "tokenizer"
"""The folder beside the shards, with the tokenizer that encoded them."""
DTYPES = {"uint16": "<u2", "uint32": "<u4"}
FORMAT = 1

Tokens = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]


def dtype_for(vocab_size: int) -> str:
    """The narrowest type that fits every id below `vocab_size`."""
    return "uint16" if vocab_size <= 65_536 else "uint32"


class ShardFile(msgspec.Struct, frozen=True):
    """One of several files of a split."""

    file: str
    tokens: int
    sha256: str


class SplitEntry(msgspec.Struct, frozen=True):
    """One split: its length, its file, and the SHA-256 of its bytes.

    A split of several files has them in `shards`, in order; `file` is then the first of them, and `sha256` that of
    their hashes, one behind another. `index` has the end of each document, `names` its name as a line of JSON; earlier
    versions wrote no names and no hash of the index.
    """

    tokens: int
    documents: int
    file: str
    sha256: str
    index: str
    index_sha256: str = ""
    names: str = ""
    shards: list[ShardFile] = []

    def files(self) -> list[ShardFile]:
        """The files of the split, in order."""
        return self.shards or [ShardFile(self.file, self.tokens, self.sha256)]


class TokensManifest(msgspec.Struct, frozen=True, kw_only=True):
    """The content of tokens.json. `tokenizer_file` is the file in `TOKENIZER` that decides the ids; earlier versions
    knew only tokenizer.model."""

    format: int
    dtype: str
    eos_id: int
    vocab_size: int
    tokenizer_sha256: str
    tokenizer_file: str = "tokenizer.model"
    splits: dict[str, SplitEntry]
    sources: dict[str, dict[str, dict[str, int]]] = {}
    """Of a text with several sources: tokens and documents of each, by split."""


class JoinedTokens:
    """The tokens of several files as one sequence, read from the disk on access.

    Attributes:
        shape: (tokens,).
        dtype: of a token.
    """

    def __init__(self, files: Sequence[Tokens]) -> None:
        self._files = files
        self._ends = np.cumsum([len(file) for file in files], dtype=np.int64)
        self.shape = (int(self._ends[-1]),)
        self.dtype = files[0].dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, place: slice) -> Tokens:
        """The tokens of a range; its step is 1."""
        begin, end, _ = place.indices(len(self))
        parts: list[Tokens] = []
        first = int(np.searchsorted(self._ends, begin, side="right"))
        for number in range(first, len(self._files)):
            start = int(self._ends[number]) - len(self._files[number])
            if start >= end:
                break
            parts.append(self._files[number][max(begin - start, 0) : end - start])
        if not parts:
            return self._files[0][:0]
        found: Any = np.concatenate(parts)
        return cast("Tokens", found)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        """All tokens as one array."""
        return self[:] if dtype is None else self[:].astype(dtype)

    def tolist(self) -> list[int]:
        """All tokens."""
        found: list[int] = self[:].tolist()
        return found


def is_tokens_folder(data: Path) -> bool:
    """Whether a data folder contains token shards; otherwise it contains rows."""
    return (data / TOKENS_JSON).is_file()


def read_tokens_manifest(path: Path) -> TokensManifest:
    """tokens.json of a tokens folder.

    Raises:
        OperatorError: it is missing or damaged, or has another format.
    """
    file = path / TOKENS_JSON
    try:
        manifest = msgspec.json.decode(read_regular_bytes(file), type=TokensManifest)
    except FileNotFoundError as error:
        raise OperatorError(
            f"{file} does not exist", "give a folder from a prepare stage with output = tokens"
        ) from error
    except msgspec.MsgspecError as error:
        raise OperatorError(
            f"{file} is not a description of token shards: {error}", "prepare the tokens again"
        ) from error
    if manifest.format != FORMAT or manifest.dtype not in DTYPES:
        raise OperatorError(
            f"{file} has format {manifest.format} and dtype {manifest.dtype}; "
            f"allowed format {FORMAT} with dtype {' or '.join(DTYPES)}",
            "prepare the tokens again with this version",
        )
    return manifest


class TokenShard:
    """One split, memory-mapped: `tokens` is read from the disk on access.

    Attributes:
        tokens: all documents in sequence, each ended by `eos_id`; shape [tokens].
        document_ends: position after each document's end; shape [documents], int64.
        manifest: the content of tokens.json.
        split: train, val or test.
    """

    def __init__(self, path: Path, split: str, *, verify: bool = False) -> None:
        """Open a split and refuse it when it does not match tokens.json.

        Args:
            path: a tokens folder.
            split: train, val or test.
            verify: also compare the SHA-256 of the file, which reads all bytes.

        Raises:
            OperatorError: the split is missing, or its length or SHA-256 differs.
        """
        self.path = path
        self.split = split
        self.manifest = read_tokens_manifest(path)
        if split not in self.manifest.splits:
            have = ", ".join(self.manifest.splits) or "none"
            raise OperatorError(f"{path} has no {split} split", f"choose one of its splits: {have}")
        self.entry = self.manifest.splits[split]
        files = self.entry.files()
        mapped = [_map(_inside(path, one.file), DTYPES[self.manifest.dtype], one.tokens) for one in files]
        self.tokens: Tokens | JoinedTokens = mapped[0] if len(mapped) == 1 else JoinedTokens(mapped)
        if len(self.tokens) != self.entry.tokens:
            raise OperatorError(
                f"the shards of the {split} split have {len(self.tokens)} tokens; {TOKENS_JSON} expects"
                f" {self.entry.tokens}",
                "prepare the tokens again",
            )
        self.document_ends: npt.NDArray[np.int64] = _map(
            _inside(path, self.entry.index), "<u8", self.entry.documents
        ).astype(np.int64)
        if self.entry.documents and int(self.document_ends[-1]) != self.entry.tokens:
            raise OperatorError(
                f"the last document end in {self.entry.index} is not the end of {self.entry.file}",
                "prepare the tokens again",
            )
        if verify:
            self.verify(lambda _done, _total: None)

    def verify(self, on_progress: Callable[[float, float], None]) -> None:
        """Compare the bytes of the split's files with the SHA-256 in tokens.json.

        Args:
            on_progress: called with bytes read and total bytes; an exception from it ends the reading.

        Raises:
            OperatorError: a SHA-256 differs.
        """
        wanted = [(_inside(self.path, one.file), one.sha256) for one in self.entry.files()]
        if self.entry.index_sha256:
            wanted.append((_inside(self.path, self.entry.index), self.entry.index_sha256))
        total, before = sum(file.stat().st_size for file, _ in wanted), 0
        for file, sha256 in wanted:
            base = before

            def read(done: float, base: int = base) -> None:
                on_progress(base + done, total)

            if file_sha256(file, read) != sha256:
                raise OperatorError(
                    f"{file} has changed: its SHA-256 differs from {TOKENS_JSON}", "prepare the tokens again"
                )
            before += file.stat().st_size

    def __len__(self) -> int:
        return int(self.tokens.shape[0])

    def document_at(self, token: int) -> int:
        """The number of the document that a token belongs to."""
        return int(np.searchsorted(self.document_ends, token, side="right"))

    @property
    def eos_id(self) -> int:
        """The token that ends every document."""
        return self.manifest.eos_id

    @property
    def vocab_size(self) -> int:
        """Number of ids; every token is below it."""
        return self.manifest.vocab_size

    @property
    def tokenizer(self) -> Path:
        """The folder of the tokenizer that encoded these tokens."""
        return self.path / TOKENIZER


def _inside(path: Path, name: str) -> Path:
    if Path(name).name != name:
        raise OperatorError(
            f"{path / TOKENS_JSON} names a file outside its folder: {name[:80]!r}", "prepare the tokens again"
        )
    return path / name


def _map(file: Path, dtype: str, count: int) -> Any:
    kind = np.dtype(dtype)
    try:
        size = file.stat().st_size
    except FileNotFoundError as error:
        raise OperatorError(f"{file} does not exist", "prepare the tokens again") from error
    if size != count * kind.itemsize:
        raise OperatorError(
            f"{file} has {size} bytes; {TOKENS_JSON} expects {count} values of {kind.itemsize} bytes",
            "the file is truncated or belongs to another manifest; prepare the tokens again",
        )
    if count == 0:  # an empty file cannot be mapped
        return np.empty(0, dtype=kind)
    return np.memmap(file, dtype=kind, mode="r", shape=(count,))
