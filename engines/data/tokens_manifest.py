"""tokens.json: what the files of a tokens folder are, and whether they can be so. It needs no numpy."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from engines.artifacts.data_folder import TOKENS_JSON
from engines.files import file_sha256, read_regular_bytes
from recipes.problems import OperatorError, printable

TOKENIZER = "tokenizer"
"""The folder beside the shards, with the tokenizer that encoded them."""
ID_FILES = ("tokenizer.model", "tokenizer.json")
"""Files from which programs make ids; transformers reads tokenizer.json where both exist."""
DTYPES = {"uint16": "<u2", "uint32": "<u4"}
FORMAT = 1
INDEX_BYTES = 8
"""Of a document's end in an index."""


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
    knew only tokenizer.model. `tokenizer_files` has the SHA-256 of each file there from which a program may make ids;
    empty in earlier versions."""

    format: int
    dtype: str
    eos_id: int
    vocab_size: int
    tokenizer_sha256: str
    tokenizer_file: str = "tokenizer.model"
    tokenizer_files: dict[str, str] = {}
    splits: dict[str, SplitEntry]
    sources: dict[str, dict[str, dict[str, int]]] = {}
    """Of a text with several sources: tokens and documents of each, by split."""

    @property
    def token_bytes(self) -> int:
        """Bytes of a token in a shard."""
        return int(DTYPES[self.dtype][-1])


def read_tokens_manifest(path: Path) -> TokensManifest:
    """tokens.json of a tokens folder.

    Raises:
        OperatorError: it is missing or damaged, has another format, or numbers that no tokens have.
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
            f"{file} has format {manifest.format} and dtype {printable(manifest.dtype, 40)}; "
            f"allowed format {FORMAT} with dtype {' or '.join(DTYPES)}",
            "prepare the tokens again with this version",
        )
    if wrong := "; ".join(_impossible(manifest)):
        raise OperatorError(f"{file} has numbers that no tokens have: {wrong}", "prepare the tokens again")
    return manifest


def _impossible(manifest: TokensManifest) -> Iterator[str]:
    """The numbers that cannot be."""
    most = 1 << (8 * manifest.token_bytes)
    if not 0 < manifest.vocab_size <= most:
        yield f"vocab_size {manifest.vocab_size}, allowed 1 to {most} for {manifest.dtype}"
    elif not 0 <= manifest.eos_id < manifest.vocab_size:
        yield f"eos_id {manifest.eos_id}, allowed 0 to {manifest.vocab_size - 1}"
    for name, entry in manifest.splits.items():
        if entry.tokens < 0 or entry.documents < 0 or any(one.tokens < 0 for one in entry.files()):
            yield f"fewer than 0 tokens or documents in {printable(name, 40)}"
        elif sum(one.tokens for one in entry.files()) != entry.tokens:
            yield f"{entry.tokens} tokens in {printable(name, 40)}, and other numbers in its shards"


def file_inside(path: Path, name: str) -> Path:
    """A file of a tokens folder by the name in tokens.json.

    Raises:
        OperatorError: the name leads out of the folder.
    """
    if Path(name).name != name:
        raise OperatorError(
            f"{path / TOKENS_JSON} names a file outside its folder: {name[:80]!r}", "prepare the tokens again"
        )
    return path / name


def check_size(file: Path, count: int, width: int) -> None:
    """Compare the size of a file with tokens.json.

    Raises:
        OperatorError: the file is missing, or has another size than `count` values of `width` bytes.
    """
    try:
        size = file.stat().st_size
    except FileNotFoundError as error:
        raise OperatorError(f"{file} does not exist", "prepare the tokens again") from error
    if size == count * width:
        return
    what = "has a part of a value at its end" if size % width else "is truncated or belongs to another manifest"
    raise OperatorError(
        f"{file} has {size} bytes; {TOKENS_JSON} expects {count} values of {width} bytes",
        f"the file {what}; prepare the tokens again",
    )


def check_tokenizer(path: Path, manifest: TokensManifest) -> None:
    """Refuse a tokenizer beside the shards that did not encode them.

    Raises:
        OperatorError: its file is missing or has changed.
    """
    deciding = {manifest.tokenizer_file: manifest.tokenizer_sha256, **manifest.tokenizer_files}
    for name, sha256 in deciding.items():
        file = path / TOKENIZER / file_inside(path, name).name
        if not file.is_file():
            raise OperatorError(f"{file} does not exist: it is the tokens' tokenizer", "prepare the tokens again")
        if file_sha256(file) != sha256:
            raise OperatorError(
                f"{file} has changed: it is not the tokenizer that encoded the tokens, so its ids mean other text",
                "restore the file, or prepare the tokens again",
            )
    added = [name for name in ID_FILES if manifest.tokenizer_files and name not in deciding]
    for name in added:
        if (path / TOKENIZER / name).is_file():
            raise OperatorError(
                f"{path / TOKENIZER / name} was not there when the tokens were encoded, and transformers reads it",
                "remove the file, or prepare the tokens again",
            )


def tokens_problems(path: Path) -> list[OperatorError]:
    """All that is wrong with a tokens folder, as far as the sizes of its files and its tokenizer show it."""
    try:
        manifest = read_tokens_manifest(path)
    except OperatorError as error:
        return [error]
    found = []
    for entry in manifest.splits.values():
        sizes = [(one.file, one.tokens, manifest.token_bytes) for one in entry.files()]
        for name, count, width in [*sizes, (entry.index, entry.documents, INDEX_BYTES)]:
            try:
                check_size(file_inside(path, name), count, width)
            except OperatorError as error:
                found.append(error)
    try:
        check_tokenizer(path, manifest)
    except OperatorError as error:
        found.append(error)
    return found
