"""The verdict file: bound to the SHA-256 of one GGUF file, and to its own.

What is protected: a verdict of another file is refused, because it names its file's SHA-256; an edited one is detected,
because it contains the SHA-256 of its own content, and because the run keeps a copy. Who can write both the verdict and
the run can forge it; only a key, which signs it with HMAC-SHA256, prevents that.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engines.files import read_regular_bytes
from engines.json_text import read_json
from engines.run_dir.paths import RunDir
from recipes.problems import OperatorError, printable

FORMAT = 1
KIND = "cockpit ship verdict"
SUFFIX = ".verdict.json"
_MAX_BYTES = 16 * 1024 * 1024
_LEAST_KEY_BYTES = 16
_MAX_KEY_BYTES = 64 * 1024
_OWN = ("sha256", "hmac_sha256")


@dataclass(frozen=True)
class FoundVerdict:
    """A verdict that was found for a file.

    Attributes:
        path: where.
        passed: the file may ship; None if the verdict cannot be used.
        problems: why it cannot be used.
        notes: what was not checked.
        body: its content; empty if it could not be read.
    """

    path: Path
    passed: bool | None
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    body: Mapping[str, Any] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """The verdict as JSON values."""
        return {
            "path": str(self.path),
            "passed": self.passed,
            "problems": list(self.problems),
            "notes": list(self.notes),
            "judged_t": self.body.get("judged_t"),
        }


def beside(file: Path) -> Path:
    """The path of a file's verdict beside it."""
    return file.with_name(file.name + SUFFIX)


def sealed(body: Mapping[str, Any], key: bytes | None) -> dict[str, Any]:
    """A verdict with its own SHA-256, and with a key, its HMAC."""
    found = {**{name: value for name, value in body.items() if name not in _OWN}}
    text = _canonical(found)
    found["sha256"] = hashlib.sha256(text).hexdigest()
    return found if key is None else {**found, "hmac_sha256": hmac.new(key, text, hashlib.sha256).hexdigest()}


def text_of(verdict: Mapping[str, Any]) -> bytes:
    """A verdict as a file."""
    return json.dumps(verdict, indent=1, allow_nan=False).encode() + b"\n"


def read_key(path: str | None) -> bytes | None:
    """The key in a file; None without a path.

    Raises:
        OperatorError: it cannot be read, or is too short to be a key.
    """
    if path is None:
        return None
    name = printable(path, 400)
    try:
        key = read_regular_bytes(Path(path).expanduser(), _MAX_KEY_BYTES).strip()
    except (OSError, ValueError) as error:
        raise OperatorError(f"--key — {name} cannot be read: {printable(str(error), 200)}") from error
    if len(key) < _LEAST_KEY_BYTES:
        raise OperatorError(
            f"--key — {name} has {len(key)} bytes; allowed at least {_LEAST_KEY_BYTES}",
            "make one: head -c 32 /dev/urandom | base64 > KEY",
        )
    return key


def find_verdict(file: Path, sha256: str, runs: Iterable[RunDir], key: bytes | None = None) -> FoundVerdict | None:
    """The verdict on a file; None without one.

    It is the one beside the file, unless its run has judged the file again since; else the newest one of a run.

    Args:
        file: the file.
        sha256: its SHA-256, the first part's for a split one.
        runs: the runs that are searched.
        key: checks the verdict's signature.
    """
    by_run = ([_checked(path, sha256, key) for path in run.verdicts_on(sha256)] for run in runs)
    kept = [copies for copies in by_run if copies]
    newest = max((max(copies, key=_order) for copies in kept), key=_time, default=None)
    place = beside(file)
    if not place.is_file():
        return newest
    found = _checked(place, sha256, key)
    if found.passed is None:
        return found
    if newest is None:
        note = "no run with this verdict was found, so it was not compared with the run's copy"
        return FoundVerdict(place, found.passed, (), (*found.notes, note), found.body)
    own = found.body["sha256"]
    of_run = next((copies for copies in kept if own in {one.body.get("sha256") for one in copies}), None)
    if of_run is None:
        return FoundVerdict(place, None, ("the run has verdicts on this file, and not this one",))
    later = max(of_run, key=_order)
    if later.body.get("sha256") == own:
        return found
    note = "the verdict beside the file is an earlier one; the run has this one since"
    return FoundVerdict(later.path, later.passed, later.problems, (*later.notes, note), later.body)


def next_number(run: RunDir | None, sha256: str) -> int:
    """The number of a new verdict of a run on a file: one above every one that the run has."""
    copies = run.verdicts_on(sha256) if run is not None and sha256 else []
    return 1 + max((_number(_checked(path, sha256, None)) for path in copies), default=0)


def _order(found: FoundVerdict) -> tuple[int, float]:
    """Verdicts of one run follow one another by their numbers; the time of older ones, which have none, may be of a
    clock that was wrong."""
    return _number(found), _time(found)


def _number(found: FoundVerdict) -> int:
    number = found.body.get("number")
    return number if type(number) is int else 0


def _time(found: FoundVerdict) -> float:
    return float(found.body.get("judged_t") or 0.0)


def _checked(path: Path, sha256: str, key: bytes | None) -> FoundVerdict:
    try:
        body = read_json(path, _MAX_BYTES)
        if body["kind"] != KIND or body["format"] != FORMAT or not isinstance(body["passed"], bool):
            raise TypeError
        named = str(body["file"]["sha256"])
        again = sealed(body, key)
        float(body["judged_t"])
    except (OSError, ValueError) as error:
        return FoundVerdict(path, None, (f"the verdict cannot be read: {printable(str(error), 200)}",))
    except (KeyError, TypeError):
        return FoundVerdict(path, None, ("it is not a verdict of this version of Cockpit",))
    problems, notes = [], []
    if not hmac.compare_digest(str(body.get("sha256")), again["sha256"]):
        problems.append("the verdict was edited: its content does not have the SHA-256 that it names")
    if named != sha256:
        problems.append(f"the verdict is of another file: {named[:12]}…, not {sha256[:12]}…")
    if key is not None and not hmac.compare_digest(str(body.get("hmac_sha256")), again["hmac_sha256"]):
        problems.append("the verdict was not signed with this key")
    if key is None and "hmac_sha256" in body:
        notes.append("the signature was not checked: give the key with --key FILE")
    return FoundVerdict(path, None if problems else body["passed"], tuple(problems), tuple(notes), body)


def _canonical(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode("ascii")
