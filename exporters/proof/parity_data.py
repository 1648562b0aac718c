"""Reads held-out text as windows of token ids, to compare a model's GGUF files with the model."""

from __future__ import annotations

import hashlib
import io
import json
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engines.artifacts.data_folder import METADATA, TOKENS_JSON
from engines.chat.rendering import Chat, render
from engines.data.door import DataSource, read_conversations
from engines.data.plain_text import plain_blocks
from engines.data.shards import TokenShard
from engines.data.tokens_manifest import read_tokens_manifest
from engines.files import open_regular
from engines.json_text import parse_json
from recipes.problems import OperatorError

_SPLITS = ("train", "val", "test")
SPLITS = ("test", "val")
"""Held-out splits, best first; the second is used when the first is empty."""

_STDLIB_FILES = (
    "heapq.py",
    "textwrap.py",
    "bisect.py",
    "string.py",
    "json/decoder.py",
    "shlex.py",
    "csv.py",
    "sched.py",
    "queue.py",
    "cmd.py",
)
_MIN_WINDOW = 2
_WINDOWS_PER_DOCUMENT = 2


@dataclass(frozen=True)
class Sample:
    """One piece of held-out text. `special`: names of control tokens in it mean control tokens (a rendered chat)."""

    text: str
    ids: list[int]
    special: bool


@dataclass(frozen=True)
class ParityData:
    """The text of a comparison. `windows` are token ids, each at most as long as the comparison's context."""

    source: str
    split: str
    samples: list[Sample]
    windows: list[list[int]]

    @property
    def positions(self) -> int:
        """Token positions in all windows."""
        return sum(map(len, self.windows))

    @property
    def sha256(self) -> str:
        """Hash of the windows; equal hashes mean comparisons on the same data."""
        return hashlib.sha256(json.dumps(self.windows).encode()).hexdigest()


def read_parity_data(folder: Path | None, tokenizer: Any, *, positions: int, max_length: int) -> ParityData:
    """Collect windows until there are enough positions, or no more data.

    Args:
        folder: a messages, tokens or text folder, a text file or a folder of those; None for the source of the running
            Python's standard library.
        tokenizer: the model's, as transformers loads it.
        positions: token positions wanted.
        max_length: longest window, in tokens.

    Raises:
        OperatorError: the folder contains no text, or its held-out splits are empty.
    """
    for source, split, samples in _sources(folder, tokenizer):
        used, windows = _take_windows(samples, positions, max_length)
        if windows:
            return ParityData(source, split, used, windows)
    raise OperatorError(
        f"{_name_of(folder)}: {_nothing_in(folder)}", "name other data, or none to use Python's standard library"
    )


def read_calibration_data(
    folder: Path | None, tokenizer: Any, *, tokens: int, max_length: int, besides: ParityData | None
) -> ParityData:
    """Windows of held-out text for an importance matrix, from documents that the comparison does not use.

    Args:
        folder: as for `read_parity_data`.
        tokenizer: the model's.
        tokens: number of tokens wanted.
        max_length: longest window, in tokens.
        besides: the comparison's data; its documents are not used, and its split is used last.

    Raises:
        OperatorError: there is no other held-out text.
    """
    taken = (
        {hashlib.sha256(sample.text.encode(errors="surrogatepass")).digest() for sample in besides.samples}
        if besides
        else set()
    )
    found = sorted(_sources(folder, tokenizer), key=lambda item: besides is not None and item[1] == besides.split)
    for source, split, samples in found:
        others = (s for s in samples if hashlib.sha256(s.text.encode(errors="surrogatepass")).digest() not in taken)
        used, windows = _take_windows(others, tokens, max_length)
        if windows:
            return ParityData(source, split, used, windows)
    raise OperatorError(
        f"{_name_of(folder)}: no held-out text is left for the importance matrix: the comparison uses all of it",
        "use data with more text, or fewer parity_positions",
    )


def _name_of(folder: Path | None) -> str:
    return "Python's standard library" if folder is None else str(folder)


def _take_windows(samples: Iterator[Sample], positions: int, max_length: int) -> tuple[list[Sample], list[list[int]]]:
    """Windows from the starts of many documents first, and from their rest only if those are too few.

    The last window is cut so that there are as many positions as requested.
    """
    wanted = max(positions, _MIN_WINDOW)
    used: list[Sample] = []
    windows: list[list[int]] = []
    later: list[list[int]] = []
    count = 0

    def add(window: list[int]) -> None:
        nonlocal count
        part = window[: wanted - count]
        if len(part) >= _MIN_WINDOW:
            windows.append(part)
            count += len(part)

    for sample in samples:
        used.append(sample)
        cuts = [sample.ids[start : start + max_length] for start in range(0, len(sample.ids), max_length)]
        cuts = [window for window in cuts if len(window) >= _MIN_WINDOW]
        later += cuts[_WINDOWS_PER_DOCUMENT:]
        for window in cuts[:_WINDOWS_PER_DOCUMENT]:
            add(window)
        if count > wanted - _MIN_WINDOW:
            break
    for window in later:
        add(window)
    return used, windows


def encode(tokenizer: Any, text: str, *, special: bool) -> list[int]:
    """Ids of a text without added begin or end; unless `special`, names of control tokens in it are ordinary text."""
    return list(tokenizer(text, add_special_tokens=False, split_special_tokens=not special)["input_ids"])


def _sources(folder: Path | None, tokenizer: Any) -> Iterator[tuple[str, str, Iterator[Sample]]]:
    if folder is None:
        yield "python standard library", "", _stdlib(tokenizer)
        return
    if (folder / TOKENS_JSON).is_file():
        present = read_tokens_manifest(folder).splits
        for split in SPLITS:
            if split in present:
                yield "tokens", split, _tokens(TokenShard(folder, split), tokenizer)
        return
    if not is_prepared(folder):
        yield "text files", "", _plain(folder, tokenizer)
        return
    for split in SPLITS:
        path = folder / f"{split}.jsonl"
        if not path.is_file():
            continue
        if _is_messages(path):
            yield "messages", split, _messages(folder, split, tokenizer)
        else:
            yield "text", split, _text(path, tokenizer)


def is_prepared(place: Path) -> bool:
    """Whether a folder has splits; only the held-out ones are read."""
    return any((place / name).is_file() for name in (TOKENS_JSON, METADATA, *(f"{s}.jsonl" for s in _SPLITS)))


def _nothing_in(folder: Path | None) -> str:
    if folder is None or is_prepared(folder):
        return "neither its test nor its val split contains text"
    return "contains no text; allowed the output of a prepare stage, a text file or a folder of text files"


def _plain(place: Path, tokenizer: Any) -> Iterator[Sample]:
    for text in plain_blocks(place):
        yield Sample(text, encode(tokenizer, text, special=False), special=False)


def _is_messages(path: Path) -> bool:
    with open_regular(path) as file:
        return b'"messages"' in file.readline()


def _messages(folder: Path, split: str, tokenizer: Any) -> Iterator[Sample]:
    for row in read_conversations(DataSource(folder), split):
        text = render(tokenizer, [Chat(row.as_dicts())])[0]
        yield Sample(text, encode(tokenizer, text, special=True), special=True)


def _tokens(shard: TokenShard, tokenizer: Any) -> Iterator[Sample]:
    start = 0
    for end in shard.document_ends.tolist():
        ids = np.asarray(shard.tokens[start : end - 1]).tolist()  # without the document's end token
        start = end
        yield Sample(
            str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)),
            ids,
            special=False,
        )


def _text(path: Path, tokenizer: Any) -> Iterator[Sample]:
    with io.TextIOWrapper(open_regular(path), encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                text = parse_json(line)["text"]
                if not isinstance(text, str):
                    raise TypeError(f"text is {type(text).__name__}")
            except (ValueError, KeyError, TypeError) as error:
                raise OperatorError(
                    f'{path}:{number}: not a document; a row is {{"path": "…", "text": "…"}}'
                ) from error
            yield Sample(text, encode(tokenizer, text, special=False), special=False)


def _stdlib(tokenizer: Any) -> Iterator[Sample]:
    root = Path(sysconfig.get_path("stdlib"))
    named = [root / name for name in _STDLIB_FILES]
    others = sorted(path for path in root.glob("*.py") if path not in named)
    for path in [*named, *others]:
        if path.is_file():
            text = path.read_text(encoding="utf-8", errors="replace")
            yield Sample(text, encode(tokenizer, text, special=False), special=False)
