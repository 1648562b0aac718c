"""One pass over the rows: each becomes a line in a scratch file, and a record of numbers in another.

Neither data nor records are in memory: what decides about a row (its digests, its category, its length) is on disk too.
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from engines.data.preparing.groups import MAX_ROWS
from engines.data.preparing.sorted_rows import ScratchFile
from engines.data.readers.row import MessageRow, PreferenceRow, Row, TextRow
from engines.data.split import SPLITS
from recipes.problems import OperatorError

KINDS: dict[type[Row], str] = {MessageRow: "messages", TextRow: "text", PreferenceRow: "preference"}
"""The kind of a folder by the type of its rows: all rows of a folder have one."""
MAX_CATEGORIES = 1000
OTHERS = "(others)"
"""The category under which rows are counted once there are `MAX_CATEGORIES`; the rows themselves keep theirs."""
UNSPLIT = len(SPLITS)
"""The number of a row without a given split."""
BUFFER_BYTES = 1024 * 1024
CHUNK_ROWS = 32768
"""Records that are read at once."""
_NOTED_AT_ONCE = 2048
_NO_KEY = bytes(8)
FACTS = np.dtype(
    [
        ("content", "<u8"),
        ("order", "<u8"),
        ("prompt", "<u8"),
        ("group", "<u8"),
        ("start", "<u8"),
        ("turns", "<u4"),
        ("prompt_characters", "<u4"),
        ("answer_characters", "<u4"),
        ("category", "<u2"),
        ("given", "u1"),
        ("reserved", "u1"),
    ]
)
"""The record of a row.

`content` and `order` are the digest of its content, keyed by the seed: equal for equal contents. `prompt` and `group`
are digests, 0 without one. `start` is the first byte of its line. The lengths are in characters; a text counts as
answer. `category` is an index into `category_names`. `given` is the index of the split that the row's file gives, or
`UNSPLIT`.
"""
Facts = npt.NDArray[np.void]
_NUMBERS = ("start", "turns", "prompt_characters", "answer_characters", "category", "given")


class _Rest(msgspec.Struct, frozen=True, omit_defaults=True):
    """The attributes of a conversation beside its turns, in the order in which `MessageRow` has them."""

    tools: list[dict[str, Any]] = []
    group: str = ""
    category: str = ""
    id: str = ""


_EMPTY = len(b"{}")


class Spool:
    """All rows on disk, and a record of each, by its position.

    Attributes:
        folder: where scratch files of the work on these rows belong.
        kind: the kind of the rows; empty without rows.
        category_names: the categories, in the order in which they were found.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.kind = ""
        self.category_names: list[str] = []
        self.bytes = 0
        self._rows = 0
        self._lines = ScratchFile(folder)
        self._facts = ScratchFile(folder)

    def __len__(self) -> int:
        return self._rows

    def close(self) -> None:
        """Remove the files."""
        self._lines.close()
        self._facts.close()

    def extend(self, lines: bytes, facts: Facts) -> None:
        """Append rows: their lines, and their records."""
        self._lines.append(np.frombuffer(lines, dtype=np.uint8))
        self._facts.append(facts)
        self.bytes += len(lines)
        self._rows += len(facts)

    def facts(self) -> Iterator[tuple[int, Facts]]:
        """The records in chunks, each with the position of its first row."""
        for begin in range(0, len(self), CHUNK_ROWS):
            yield begin, self._facts_of(begin, min(begin + CHUNK_ROWS, len(self)))

    def lines(self) -> Iterator[bytes]:
        """The line of each row."""
        for block in self.blocks():
            yield from block

    def blocks(self) -> Iterator[list[bytes]]:
        """The lines in blocks of about `BUFFER_BYTES`; a longer line is a block of its own."""
        for begin, facts in self.facts():
            ends = np.append(facts["start"][1:], np.uint64(self._start_of(begin + len(facts))))
            at = 0
            while at < len(facts):
                start = int(facts["start"][at])
                upto = max(int(np.searchsorted(ends, np.uint64(start + BUFFER_BYTES), side="right")), at + 1)
                block = self._bytes(start, int(ends[upto - 1]))
                places = [0, *(ends[at:upto] - np.uint64(start)).tolist()]
                yield [block[low:high] for low, high in pairwise(places)]
                at = upto

    def line(self, row: int) -> bytes:
        """The line of one row."""
        return self._bytes(self._start_of(row), self._start_of(row + 1))

    def _start_of(self, row: int) -> int:
        return self.bytes if row == len(self) else int(self._facts_of(row, row + 1)["start"][0])

    def _facts_of(self, begin: int, end: int) -> Facts:
        found = np.empty(end - begin, dtype=FACTS)
        self._facts.read(found, begin * FACTS.itemsize)
        return found

    def _bytes(self, begin: int, end: int) -> bytes:
        return self._lines.text(begin, end)


class SpoolWriter:
    """Appends rows to a spool."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.spool = Spool(folder)
        self._keyed = blake2b(digest_size=16, salt=(seed % 2**64).to_bytes(8, "little"))
        self._key = blake2b(digest_size=8)
        self._encode = msgspec.json.Encoder().encode
        self._category_index: dict[str, int] = {}
        self._first_where = ""
        self._lines: list[bytes] = []
        self._waiting_bytes = 0
        self._digests: list[bytes] = []
        self._keys: list[bytes] = []
        self._noted: list[tuple[int, ...]] = []

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.spool) + len(self._noted)

    def append(self, where: str, row: Row, split: int) -> None:
        """Add a row.

        Args:
            where: its place in the data, for messages.
            row: the row.
            split: the index of the split that it is in already, or `UNSPLIT`.

        Raises:
            OperatorError: the row is of another kind than the ones before it, or a text in it cannot be encoded.
        """
        kind = KINDS[type(row)]
        if kind != self.spool.kind:
            self._set_kind(where, kind)
        try:
            line, content, prompt, lengths = self._parts(row)
        except UnicodeEncodeError as error:
            raise OperatorError(f"{where}: a text has half a surrogate pair, which no tokenizer reads") from error
        digest = self._keyed.copy()
        digest.update(content)
        self._digests.append(digest.digest())
        self._keys.append(self._digest(prompt) if prompt else _NO_KEY)
        self._keys.append(self._digest(row.group.encode()) if row.group else _NO_KEY)
        self._noted.append((self.spool.bytes + self._waiting_bytes, *lengths, self._category(row.category), split))
        self._lines.append(line)
        self._waiting_bytes += len(line)
        if len(self._noted) >= _NOTED_AT_ONCE or self._waiting_bytes >= BUFFER_BYTES:
            self._write(where)

    def close(self) -> Spool:
        """End the writing; returns the spool."""
        self._write("")
        return self.spool

    def _write(self, where: str) -> None:
        """Write the rows that wait."""
        if not self._noted:
            return
        facts = np.zeros(len(self._noted), dtype=FACTS)
        digests = np.frombuffer(b"".join(self._digests), dtype="<u8").reshape(-1, 2)
        keys = np.frombuffer(b"".join(self._keys), dtype="<u8").reshape(-1, 2)
        facts["content"], facts["order"] = digests.T
        facts["prompt"], facts["group"] = keys.T
        numbers = zip(*self._noted, strict=True)
        for name, column in zip(_NUMBERS, numbers, strict=True):
            facts[name] = column
        self.spool.extend(b"".join(self._lines), facts)
        for waiting in (self._lines, self._digests, self._keys, self._noted):
            waiting.clear()
        self._waiting_bytes = 0
        if len(self.spool) > MAX_ROWS:
            raise OperatorError(f"{where}: more than {MAX_ROWS} rows", "prepare the data in several stages")

    def _set_kind(self, where: str, kind: str) -> None:
        if self.spool.kind:
            raise OperatorError(
                f"{where}: the row is of the kind {kind}; {self._first_where} is of the kind {self.spool.kind}",
                "prepare rows of different kinds in stages of their own",
            )
        self.spool.kind, self._first_where = kind, where

    def _parts(self, row: Row) -> tuple[bytes, bytes, bytes, tuple[int, int, int]]:
        """The line of a row, what two equal rows have in common, what two rows with the same question have in common,
        and the numbers of turns, of characters of the prompt, and of characters of the answers."""
        if isinstance(row, MessageRow):
            return self._parts_of_talk(row)
        line = self._encode(row) + b"\n"
        if isinstance(row, TextRow):
            return line, row.text.encode(), b"", (0, 0, len(row.text))
        asked = [turn.content for turn in row.prompt if turn.role != "system"]
        lengths = (
            len(row.prompt) + len(row.chosen),
            sum(len(turn.content) for turn in row.prompt),
            sum(len(turn.content) for turn in row.chosen),
        )
        content = self._encode((row.prompt, row.chosen, row.rejected, row.tools))
        return line, content, "\0".join(asked).encode(), lengths

    def _parts_of_talk(self, row: MessageRow) -> tuple[bytes, bytes, bytes, tuple[int, int, int]]:
        """The same of a conversation, whose turns are encoded once: they are most of the line."""
        content = turns = self._encode(row.messages)
        rest = self._encode(_Rest(row.tools, row.group, row.category, row.id))
        if row.tools:
            content = turns + self._encode(row.tools)
        line = b"".join((b'{"messages":', turns, b"," if len(rest) > _EMPTY else b"", rest[1:], b"\n"))
        asked: list[str] = []
        before, prompt, answers = 0, 0, 0
        for turn in row.messages:
            role, text = turn.role, turn.content
            if role == "assistant":
                answers += len(text)
                before = len(asked)
            else:
                prompt += len(text)
                if role == "system":
                    continue
            asked.append(text)
        return line, content, "\0".join(asked[:before]).encode(), (len(row.messages), prompt, answers)

    def _category(self, name: str) -> int:
        index = self._category_index.get(name)
        if index is None:
            names = self.spool.category_names
            if len(names) >= MAX_CATEGORIES and name != OTHERS:
                return self._category(OTHERS)
            index = self._category_index[name] = len(names)
            names.append(name)
        return index

    def _digest(self, text: bytes) -> bytes:
        digest = self._key.copy()
        digest.update(text)
        return digest.digest()
