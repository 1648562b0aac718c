"""Votes between two answers: which side shows which model is decided by a seed and said at the end.

A file of votes is lines of JSON: a header, and one line for each vote, written whole when it is given. An undone vote
is a line of its own. So a file may be closed at any time and continued.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from cockpit.text import formatting as fmt
from cockpit.text.safe_text import safe_text
from engines.files import open_append, open_regular
from engines.judging.shares.counts import CONFIDENCE, Interval, mcnemar, wilson
from recipes.problems import OperatorError, printable

FORMAT = 1
LEFT, RIGHT, TIE, SKIP = "1", "2", "tie", "skip"
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_UNDO, _END = "undo", "end"
CHOICES = (LEFT, RIGHT, TIE, SKIP)
MAX_LINE_BYTES = 64 * 1024 * 1024


class Pair(msgspec.Struct, frozen=True):
    """A prompt and the answers of the first and of the second model."""

    key: str
    messages: list[dict[str, Any]]
    answers: tuple[str, str]

    @property
    def equal(self) -> bool:
        """There is nothing to choose."""
        return self.answers[0].strip() == self.answers[1].strip()


class _Head(msgspec.Struct, frozen=True):
    format: int
    prompts_sha256: str
    sides: tuple[str, str]


@dataclass(frozen=True)
class Pairs:
    """The pairs of a file, and whose they are."""

    sides: tuple[str, str]
    prompts_sha256: str
    pairs: tuple[Pair, ...]


def read_pairs(file: Path) -> Pairs:
    """The pairs that `engines.chatting.pairs` wrote.

    Raises:
        OperatorError: the file cannot be read, or is not a file of pairs.
    """
    name = printable(str(file), 400)
    try:
        with open_regular(file) as lines:
            head = msgspec.json.decode(lines.readline(MAX_LINE_BYTES), type=_Head)
            pairs = []
            while line := lines.readline(MAX_LINE_BYTES):
                pairs.append(msgspec.json.decode(line, type=Pair))
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise OperatorError(f"{name} is not a file of pairs: {printable(str(error), 200)}") from error
    return Pairs(head.sides, head.prompts_sha256, tuple(pairs))


@dataclass(frozen=True)
class Count:
    """The result of votes.

    Attributes:
        wins: votes for the first and for the second model.
        ties: votes for neither.
        skipped: pairs without an opinion.
        equal: pairs with equal answers, which were not shown.
        open: pairs without a vote.
    """

    wins: tuple[int, int]
    ties: int
    skipped: int
    equal: int
    open: int

    @property
    def decided(self) -> int:
        """Votes for one of the two."""
        return sum(self.wins)

    @property
    def share(self) -> float | None:
        """Share of the first model among the decided votes; None without one."""
        return self.wins[0] / self.decided if self.decided else None

    @property
    def interval(self) -> Interval | None:
        """Its interval (Wilson, 95 %)."""
        return wilson(self.wins[0], self.decided) if self.decided else None

    @property
    def p_value(self) -> float:
        """The sign test: how likely such a difference is between equal models."""
        return mcnemar(*self.wins)

    def record(self, sides: tuple[str, str]) -> dict[str, Any]:
        """Plain values."""
        interval = self.interval
        return {
            "first": sides[0],
            "second": sides[1],
            "first_wins": self.wins[0],
            "second_wins": self.wins[1],
            "ties": self.ties,
            "skipped": self.skipped,
            "equal": self.equal,
            "open": self.open,
            "share": self.share,
            "share_low": None if interval is None else interval.low,
            "share_high": None if interval is None else interval.high,
            "p_value": self.p_value,
        }

    def lines(self, sides: tuple[str, str]) -> list[str]:
        """The result for people, with the models' names."""
        first, second = (safe_text(side, 60) for side in sides)
        others = f"{fmt.counted(self.ties, 'tie')}, {self.skipped} skipped, {self.equal} equal and not shown"
        found = [
            f"{first}: {fmt.counted(self.wins[0], 'win')}",
            f"{second}: {fmt.counted(self.wins[1], 'win')}",
            f"{others}, {self.open} open",
        ]
        if self.share is not None and self.interval is not None:
            ends = f"{fmt.percent(self.interval.low, 1)} to {fmt.percent(self.interval.high, 1)}"
            found.append(
                f"{first} wins {fmt.percent(self.share, 1)} of {fmt.counted(self.decided, 'decided vote')}"
                f" ({fmt.percent(CONFIDENCE)} interval {ends}), sign test p = {fmt.number(self.p_value, 2)}"
            )
        return found


class Votes:
    """Votes on pairs, kept in a file.

    Attributes:
        pairs: what is compared.
        votes: the vote on each pair, by key.
        ended: the operator ended it before every pair had a vote.
    """

    def __init__(self, file: Path, pairs: Pairs, seed: int) -> None:
        """Open or make the file; `seed` is that of a new one.

        Raises:
            OperatorError: it has votes on other pairs, is not a file of votes, or cannot be written.
        """
        self.pairs, self.file = pairs, file
        self.votes: dict[str, str] = {}
        self.ended = False
        self._given: list[str] = []
        self._cut = False
        head = {"format": FORMAT, "sides": list(pairs.sides), "prompts_sha256": pairs.prompts_sha256, "seed": seed}
        lines = self._lines()
        if not lines:
            self.seed = seed
            self._write(head)
        else:
            self.seed = self._checked(lines[0], head)
        shown = [pair for pair in pairs.pairs if not pair.equal]
        self.shown = sorted(shown, key=lambda pair: self._digest(f"order {pair.key}"))
        """the pairs in the order in which they are shown"""
        self._open = {pair.key for pair in shown}
        for line in lines[1:]:
            self._take(line)

    @property
    def at(self) -> Pair | None:
        """The pair that is shown now; None at the end."""
        if self.finished:
            return None
        return next(pair for pair in self.shown if pair.key in self._open)

    @property
    def done(self) -> int:
        """Pairs with a vote."""
        return sum(pair.key in self.votes for pair in self.shown)

    @property
    def finished(self) -> bool:
        """Every pair has a vote, or the operator ended it: the sides may be known."""
        return self.ended or not self._open

    def sides_of(self, pair: Pair) -> tuple[str, str]:
        """The answers at the left and at the right."""
        first, second = pair.answers
        return (second, first) if self._swapped(pair.key) else (first, second)

    def vote(self, choice: str) -> None:
        """Keep a vote on the pair that is shown.

        Raises:
            OperatorError: the file cannot be written.
        """
        pair = self.at
        if pair is None or choice not in CHOICES:
            return
        self._write({"key": pair.key, "vote": choice})
        self._keep(pair.key, choice)

    def undo(self) -> bool:
        """Remove the last vote; returns whether there was one. After the end no vote changes: the sides are known."""
        if self.finished or not self._given:
            return False
        key = self._given[-1]
        self._write({"key": key, "vote": _UNDO})
        self._drop(key)
        return True

    def end(self) -> None:
        """End the votes before every pair has one; no vote follows."""
        if not self.finished:
            self._write({"key": "", "vote": _END})
            self.ended = True

    def count(self) -> Count:
        """The result so far."""
        winners = Counter(self.winner(pair) for pair in self.shown)
        return Count(
            (winners["first"], winners["second"]),
            winners[TIE],
            winners[SKIP],
            len(self.pairs.pairs) - len(self.shown),
            winners[""],
        )

    def winner(self, pair: Pair) -> str:
        """`first`, `second`, `tie`, `skip`, or empty without a vote."""
        choice = self.votes.get(pair.key, "")
        if choice not in {LEFT, RIGHT}:
            return choice
        return "first" if (choice == LEFT) != self._swapped(pair.key) else "second"

    def as_json(self) -> str:
        """The result and every vote, with the models' names."""
        rows = [
            {
                "key": pair.key,
                "winner": "equal" if pair.equal else self.winner(pair),
                "messages": pair.messages,
                "first": pair.answers[0],
                "second": pair.answers[1],
            }
            for pair in self.pairs.pairs
        ]
        return json.dumps({**self.count().record(self.pairs.sides), "seed": self.seed, "rows": rows}, indent=1) + "\n"

    def as_csv(self) -> str:
        """Every vote as a line. Texts that a spreadsheet would compute begin with an apostrophe, which it hides."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["key", "winner", "prompt", *(f"{side}" for side in self.pairs.sides)])
        for pair in self.pairs.pairs:
            winner = "equal" if pair.equal else self.winner(pair)
            texts = (str(pair.messages[-1].get("content") or ""), *pair.answers)
            writer.writerow([pair.key, winner, *(f"'{one}" if one[:1] in _FORMULA else one for one in texts)])
        return text.getvalue()

    def _swapped(self, key: str) -> bool:
        return bool(self._digest(f"side {key}")[0] & 1)

    def _digest(self, text: str) -> bytes:
        return hashlib.sha256(f"{self.seed} {text}".encode()).digest()

    def _lines(self) -> list[bytes]:
        try:
            with open_regular(self.file, MAX_LINE_BYTES) as file:
                data = file.read()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise self._unusable(f"cannot be read: {error.strerror or error}") from error
        self._cut = bool(data) and not data.endswith(b"\n")
        return data.splitlines()

    def _checked(self, line: bytes, head: dict[str, Any]) -> int:
        """The seed of a file that has votes on these pairs."""
        try:
            found = msgspec.json.decode(line, type=dict[str, Any])
            seed = int(found.pop("seed"))
        except (msgspec.MsgspecError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise self._unusable("is not a file of votes") from error
        if any(found.get(key) != head[key] for key in ("format", "sides", "prompts_sha256")):
            raise self._unusable("has votes on other answers")
        return seed

    def _take(self, line: bytes) -> None:
        """A kept line. One that a kill cut short, of another pair, or after the end counts as not given."""
        try:
            value = msgspec.json.decode(line, type=dict[str, str])
            key, vote = value["key"], value["vote"]
        except (msgspec.MsgspecError, KeyError, UnicodeDecodeError, RecursionError):
            return
        if self.finished:
            return
        if vote == _END:
            self.ended = True
        elif vote == _UNDO and key in self.votes:
            self._drop(key)
        elif vote in CHOICES and (key in self._open or key in self.votes):
            self._keep(key, vote)

    def _keep(self, key: str, choice: str) -> None:
        if key in self.votes:  # two windows voted on this pair
            self._given.remove(key)
        self.votes[key] = choice
        self._given.append(key)
        self._open.discard(key)

    def _drop(self, key: str) -> None:
        del self.votes[key]
        self._given.remove(key)
        self._open.add(key)

    def _write(self, value: dict[str, Any]) -> None:
        """A line, whole; after one that a kill cut short it begins on a line of its own."""
        try:
            fd = open_append(self.file)
            try:
                data = memoryview((b"\n" if self._cut else b"") + json.dumps(value).encode() + b"\n")
                while data:
                    data = data[os.write(fd, data) :]
                self._cut = False
            finally:
                os.close(fd)
        except OSError as error:
            raise self._unusable(f"cannot be written: {error.strerror or error}") from error

    def _unusable(self, why: str) -> OperatorError:
        return OperatorError(f"{printable(str(self.file), 400)} {why}", "give another --output")
