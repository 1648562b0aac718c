"""Kept answers: one line a row, written at once, so that a killed evaluation asks nothing twice.

The first line says whose answers they are. A line that a kill cut short is not an answer; the next one starts on a new
line.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import msgspec

from engines.files import fsync_file, open_append, open_regular
from recipes.problems import OperatorError, printable

FORMAT = 1
MAX_LINE_BYTES = 64 * 1024 * 1024
MAX_SECONDS = 1e9
"""Thirty years: no answer takes longer, and sums of such numbers are finite."""
MAX_TOKEN = 2**31 - 1
Seconds = Annotated[float, msgspec.Meta(ge=0, le=MAX_SECONDS)]
TokenCount = Annotated[int, msgspec.Meta(ge=0, le=MAX_TOKEN)]


class Kept(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A model's answer to one task.

    Attributes:
        key: the task's.
        answer: the text, without control tokens.
        ended: the model ended the answer itself, before the limit of tokens.
        prompt_tokens: tokens of the prompt.
        tokens: new tokens, the one that ended the answer included.
        first_token_s: seconds from the request to the first new token.
        latency_s: seconds from the request to the last one.
        batch: prompts that were answered together.
        problem: why the model could not be asked; empty if it was.
        ids: the new tokens, the one that ended the answer included.
        machine: on which it was answered, as `engines.processor.machine_class` names it.
    """

    key: str
    answer: str
    ended: bool
    prompt_tokens: TokenCount
    tokens: TokenCount
    first_token_s: Seconds
    latency_s: Seconds
    batch: Annotated[int, msgspec.Meta(ge=1, le=MAX_TOKEN)] = 1
    problem: str = ""
    ids: list[TokenCount] = []
    machine: str = ""


class AnswerFile:
    """A file of answers of one model, open for more.

    Attributes:
        path: the file.
        kept: the answers in it, by the keys of their tasks.
        damaged: lines that were cut short or cannot be read.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        """Open or make the file.

        Args:
            path: the file.
            identity: whose answers they are, as JSON data: model, template, sampling.

        Raises:
            OperatorError: it has answers of another identity, is not a file of answers, or another process writes it.
        """
        self.path = path
        self.kept: dict[str, Kept] = {}
        self.damaged = 0
        try:
            self._fd = open_append(path)
        except OSError as error:
            name = printable(str(path), 400)
            raise OperatorError(f"{name} cannot be written: {error.strerror}", "give another --output") from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._read(json.loads(json.dumps(identity)))
        except BlockingIOError as error:
            self.close()
            name = printable(str(path), 400)
            hint = "wait until it ends, or give another --output"
            raise OperatorError(f"{name}: another process writes these answers", hint) from error
        except BaseException:
            self.close()
            raise

    def add(self, one: Kept) -> None:
        """Keep an answer: it is in the file when this returns.

        Raises:
            OSError: it cannot be written; the message says what is kept.
        """
        self._write(msgspec.to_builtins(one))
        self.kept[one.key] = one

    def sync(self) -> None:
        """Return when every answer is on the disk."""
        fsync_file(self.path)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def _read(self, identity: dict[str, Any]) -> None:
        lines = _lines(self.path)
        first = next(lines, None)
        if first is None:
            self._write({"format": FORMAT, "identity": identity})
            return
        self._compare(first, identity)
        whole = True
        for line in lines:
            whole = line.endswith(b"\n")
            try:
                one = msgspec.json.decode(line, type=Kept)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                self.damaged += bool(line.strip())
                continue
            self.kept[one.key] = one
        if not whole:
            self._bytes(b"\n")

    def _compare(self, first: bytes, identity: dict[str, Any]) -> None:
        name = printable(str(self.path), 400)
        try:
            header = msgspec.json.decode(first, type=dict[str, Any]) if first.endswith(b"\n") else {}
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            header = {}
        found = header.get("identity")
        if header.get("format") != FORMAT or not isinstance(found, dict):
            raise OperatorError(f"{name} is not a file of answers", "give another --output, or remove the file")
        differing = [key for key in sorted({*found, *identity}) if found.get(key) != identity.get(key)]
        if differing:
            key = differing[0]
            got, wanted = (printable(json.dumps(one.get(key)), 100) for one in (found, identity))
            raise OperatorError(
                f"{name} has answers of another evaluation: {', '.join(differing)} differ; {key} is {got} there and"
                f" {wanted} now",
                "give another --output, or remove the file",
            )

    def _write(self, value: Any) -> None:
        self._bytes(json.dumps(value).encode() + b"\n")

    def _bytes(self, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError as error:
            kept = f"{len(self.kept)} answers are kept, and the same command continues after them"
            raise OSError(error.errno, f"{error.strerror}: {kept}", str(self.path)) from error


def kept_moment(path: Path) -> str:
    """The local time that the template of the kept answers saw, in ISO form; empty without answers."""
    try:
        first = next(_lines(path), b"")
        header = msgspec.json.decode(first, type=dict[str, Any])
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ""
    identity = header.get("identity")
    found = identity.get("moment") if isinstance(identity, dict) else None
    return found if isinstance(found, str) else ""


def kept_answers(path: Path) -> tuple[dict[str, Any], dict[str, Kept]]:
    """The identity and the answers of a finished file, by the keys of their tasks; lines that cannot be read are left
    out.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not a file of answers.
    """
    lines = _lines(path)
    try:
        header = msgspec.json.decode(next(lines, b""), type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError("not a file of answers") from error
    if header.get("format") != FORMAT or not isinstance(header.get("identity"), dict):
        raise ValueError("not a file of answers")
    kept = {}
    for line in lines:
        with suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            one = msgspec.json.decode(line, type=Kept)
            kept[one.key] = one
    return header["identity"], kept


def _lines(path: Path) -> Iterator[bytes]:
    with open_regular(path) as file:
        while line := file.readline(MAX_LINE_BYTES):
            yield line
