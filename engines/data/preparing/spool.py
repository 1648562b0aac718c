"""One pass over the rows: each becomes a line in a scratch file, and about sixty bytes of numbers in memory.

The data itself is never in memory: what decides about a row (its digests, its category, its length) is.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import blake2b
from io import BufferedReader
from pathlib import Path
from typing import Any

import msgspec

from engines.data.readers.row import MessageRow, PreferenceRow, Row, TextRow
from engines.data.split import SPLITS
from engines.files import open_regular
from recipes.problems import OperatorError

KINDS: dict[type[Row], str] = {MessageRow: "messages", TextRow: "text", PreferenceRow: "preference"}
"""The kind of a folder by the type of its rows: all rows of a folder have one."""
MAX_CATEGORIES = 1000
OTHERS = "(others)"
"""The category under which rows are counted once there are `MAX_CATEGORIES`; the rows themselves keep theirs."""
UNSPLIT = len(SPLITS)
"""The number of a row without a given split."""
BUFFER_BYTES = 1024 * 1024
_NOTED_AT_ONCE = 2048
_NO_KEY = bytes(8)


class _Rest(msgspec.Struct, frozen=True, omit_defaults=True):
    """The attributes of a conversation beside its turns, in the order in which `MessageRow` has them."""

    tools: list[dict[str, Any]] = []
    group: str = ""
    category: str = ""
    id: str = ""


_EMPTY = len(b"{}")


@dataclass
class Spool:
    """All rows on disk, and numbers of each row, by its position.

    Attributes:
        file: one row a line, as it is written into its split.
        kind: the kind of the rows; empty without rows.
        contents: 16 bytes a row, its content's digest, keyed by the seed. Equal for equal contents.
        groups, prompts: 8 bytes a row, digests of the row's group and of its prompt; zeros without one. `groups` ends
            with the last row that has a group.
        categories: indices into `category_names`.
        turns, prompt_characters, answer_characters: of each row; a text counts as answer.
        given: the index of the split that the row's file gives, or `UNSPLIT`.
    """

    file: Path
    kind: str = ""
    contents: bytearray = field(default_factory=bytearray)
    groups: bytearray = field(default_factory=bytearray)
    prompts: bytearray = field(default_factory=bytearray)
    categories: array[int] = field(default_factory=lambda: array("H"))
    category_names: list[str] = field(default_factory=list)
    turns: array[int] = field(default_factory=lambda: array("I"))
    prompt_characters: array[int] = field(default_factory=lambda: array("I"))
    answer_characters: array[int] = field(default_factory=lambda: array("I"))
    given: bytearray = field(default_factory=bytearray)

    def __len__(self) -> int:
        return len(self.given)

    @contextmanager
    def lines(self) -> Iterator[BufferedReader]:
        """The file of the rows' lines, open at its beginning."""
        with open_regular(self.file) as lines:
            yield lines


class SpoolWriter:
    """Appends rows to a spool."""

    def __init__(self, file: Path, seed: int) -> None:
        self.spool = Spool(file)
        self._file = file.open("wb", buffering=BUFFER_BYTES)
        self._keyed = blake2b(digest_size=16, salt=(seed % 2**64).to_bytes(8, "little"))
        self._key = blake2b(digest_size=8)
        self._encode = msgspec.json.Encoder().encode
        self._category_index: dict[str, int] = {}
        self._first_where = ""
        self._noted: list[tuple[int, int, int, int]] = []

    def append(self, where: str, row: Row, split: int) -> None:
        """Add a row.

        Args:
            where: its place in the data, for messages.
            row: the row.
            split: the index of the split that it is in already, or `UNSPLIT`.

        Raises:
            OperatorError: the row is of another kind than the ones before it, or a text in it cannot be encoded.
        """
        spool = self.spool
        kind = KINDS[type(row)]
        if kind != spool.kind:
            self._set_kind(where, kind)
        try:
            line, content, prompt, lengths = self._parts(row)
        except UnicodeEncodeError as error:
            raise OperatorError(f"{where}: a text has half a surrogate pair, which no tokenizer reads") from error
        digest = self._keyed.copy()
        digest.update(content)
        spool.contents += digest.digest()
        spool.prompts += self._digest(prompt) if prompt else _NO_KEY
        if row.group:
            spool.groups += bytes(8 * len(spool) - len(spool.groups)) + self._digest(row.group.encode())
        spool.given.append(split)
        self._file.write(line)
        self._noted.append((self._category(row.category), *lengths))
        if len(self._noted) >= _NOTED_AT_ONCE:
            self._note()

    def close(self) -> Spool:
        """End the writing; returns the spool."""
        self._file.close()
        self._note()
        return self.spool

    def _note(self) -> None:
        spool = self.spool
        columns = (spool.categories, spool.turns, spool.prompt_characters, spool.answer_characters)
        for column, numbers in zip(columns, zip(*self._noted, strict=True), strict=False):
            column.extend(numbers)
        self._noted.clear()

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
