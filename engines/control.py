"""Requests to a running engine: small numbered files, renamed into the run's `control/` folder.

The engine's rank 0 reads them at step boundaries and answers each with a `control_applied` event; the supervisor
answers those that no engine will take. Taking a request moves its file to `control/done/`, so no request acts twice.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Container
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.files import fsync_folder, open_regular
from engines.json_text import parse_json
from engines.run_dir.paths import taken_requests
from engines.words import Verb
from recipes import quantities

MAX_REQUEST_BYTES = 16_384
MAX_TEXT = 2000
"""Characters of a request's text."""
_NAME = re.compile(r"([0-9]{6,12})-([a-z-]+)\.json")
_CLAIM = ".claim"
_CLAIMED = re.compile(r"([0-9]{6,12})\.claim$")
_NUMBER = re.compile(r"([0-9]{6,12})[-.]")


@dataclass(frozen=True)
class Request:
    """One request. Only learning-rate (a positive number) and max-steps (a step) have a `value`; only sample has a
    `text`, which may be empty. With a `stage`, only the engine of that stage carries it out."""

    number: int
    verb: Verb
    value: float | None = None
    by: str = "operator"
    file: str = ""
    text: str = ""
    stage: str = ""

    @property
    def words(self) -> str:
        """The request as it is journaled: the verb with its number or its text."""
        if self.value is not None:
            return f"{self.verb} {quantities.exact(self.value)}"
        return f"{self.verb} {self.text}" if self.text else str(self.verb)


def put_request(
    control: Path, verb: Verb, value: float | None = None, by: str = "operator", text: str = "", stage: str = ""
) -> Request:
    """Write a request for the run.

    Raises:
        ValueError: an unknown verb, a missing or superfluous value or text, or one out of range.
        OSError: the folder cannot be written.
    """
    verb = Verb(verb)
    if (value is not None) != verb.takes_value:
        raise ValueError(f"{verb} {'takes no' if value is not None else 'needs a'} value")
    if not _in_range(verb, value):
        allowed = "a finite number above 0" if verb is Verb.LEARNING_RATE else "a whole number of at least 1"
        raise ValueError(f"{verb} — got {value}; allowed {allowed}")
    if text and not verb.takes_text:
        raise ValueError(f"{verb} takes no text")
    if len(text) > MAX_TEXT:
        raise ValueError(f"{verb} — got a text of {len(text)} characters; allowed at most {MAX_TEXT}")
    control.mkdir(exist_ok=True)
    more = {name: given for name, given in (("text", text), ("stage", stage)) if given}
    data = json.dumps({"verb": verb, "value": value, "by": by, **more}).encode()
    temporary = control / f".{os.getpid()}.{os.urandom(4).hex()}.tmp"
    temporary.touch(0o600)  # whatever the shell of the one who asks shares
    temporary.write_bytes(data)
    number = highest_number(control) + 1
    try:
        while True:
            name = f"{number:06d}-{verb}.json"
            claim = control / f"{number:06d}{_CLAIM}"
            try:
                # A link, not a rename: two simultaneous requests must not get the same number.
                os.link(temporary, claim)
            except FileExistsError:
                number += 1
                continue
            if number in _requested(control):  # its claim was removed after this process had counted
                claim.unlink(missing_ok=True)
                number += 1
                continue
            temporary.rename(control / name)
            fsync_folder(control)
            _remove_claims(control)
            return Request(number, verb, value, by, name, text, stage)
    finally:
        temporary.unlink(missing_ok=True)


def _requested(control: Path) -> set[int]:
    """Numbers of requests, taken or not. The folder of open ones is read first: requests move from it to the other."""
    return _numbers(control, _NAME) | _numbers(taken_requests(control), _NAME)


def _remove_claims(control: Path) -> None:
    """Remove the claims whose request exists: its file has the number from now on."""
    for number in _numbers(control, _CLAIMED) & _requested(control):
        (control / f"{number:06d}{_CLAIM}").unlink(missing_ok=True)


def pending(control: Path, *, seen: Container[int] = frozenset()) -> list[Request]:
    """Requests that are not taken yet and not `seen`, oldest first. Unreadable and foreign files are ignored."""
    requests: list[Request] = []
    try:
        names = os.listdir(control)
    except OSError:
        return requests
    for name in names:
        match = _NAME.fullmatch(name)
        if match and int(match[1]) not in seen:
            with suppress(OSError, ValueError, TypeError, AttributeError, RecursionError, OverflowError):
                verb = Verb(match[2])
                body = parse_json(_read_small(control / name))
                value = body.get("value")
                number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
                if _in_range(verb, number):
                    number = number if verb.takes_value else None
                    by = str(body.get("by", "operator"))[:80]
                    stage = str(body.get("stage") or "")[:80]
                    requests.append(Request(int(match[1]), verb, number, by, name, _text(verb, body), stage))
    return sorted(requests, key=lambda request: request.number)


def _text(verb: Verb, body: Any) -> str:
    """The text of a verb that takes one, as valid Unicode and not longer than allowed."""
    text = str(body.get("text") or "")[:MAX_TEXT] if verb.takes_text else ""
    return text.encode("utf-8", "replace").decode()


def _in_range(verb: Verb, value: float | None) -> bool:
    """Whether the value is in the verb's range; a verb without a value accepts any."""
    if not verb.takes_value:
        return True
    if value is None or not math.isfinite(value):
        return False
    return value > 0 if verb is Verb.LEARNING_RATE else value >= 1 and value == int(value)


def _read_small(path: Path) -> bytes:
    """A request's bytes, from a small regular file that this user owns; links and pipes are refused."""
    with open_regular(path, MAX_REQUEST_BYTES, follow=False) as file:
        if os.fstat(file.fileno()).st_uid != os.getuid():
            raise OSError("another user owns the file")
        return file.read(MAX_REQUEST_BYTES)


def take(control: Path, request: Request) -> bool:
    """Move a request to the done folder; False when another process has taken it."""
    done = taken_requests(control)
    try:
        done.mkdir(exist_ok=True)
        (control / request.file).rename(done / request.file)
    except OSError:
        return False
    return True


def history(control: Path, *, seen: Container[int] = frozenset()) -> list[Request]:
    """Requests that are not `seen`, taken or not, oldest first.

    `seen` has each number, not only the highest: a request gets its number before its name, so a later request can
    appear before an earlier one.
    """
    folders = (taken_requests(control), control)
    found = {request.number: request for folder in folders for request in pending(folder, seen=seen)}
    return [found[number] for number in sorted(found)]


def numbers_taken(control: Path) -> set[int]:
    """Numbers of all taken requests."""
    return _numbers(taken_requests(control), _NUMBER)


def highest_number(control: Path) -> int:
    """The highest number so far; 0 when no request exists."""
    return max(_numbers(control, _NUMBER) | _numbers(taken_requests(control), _NUMBER), default=0)


def stamp(control: Path) -> tuple[int, ...]:
    """The times at which requests were last added or taken, in nanoseconds; equal while no file came or went."""
    times = []
    for folder in (control, taken_requests(control)):
        with suppress(OSError):
            times.append(folder.stat().st_mtime_ns)
    return tuple(times)


def _numbers(folder: Path, pattern: re.Pattern[str]) -> set[int]:
    try:
        return {int(match[1]) for name in os.listdir(folder) if (match := pattern.match(name))}
    except OSError:
        return set()
