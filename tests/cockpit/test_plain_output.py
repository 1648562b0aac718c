"""Whatever the data of a run says, plain output has no control byte but newline and tab beside Cockpit's own, and JSON
escapes them. Every command prints through `cockpit/text/output.py`, where it is made safe once."""

from __future__ import annotations

import ast
import json
import random
import re
import types
import typing
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cockpit.cli import main
from cockpit.launching.adoption import FOLLOWER
from cockpit.runs.reader import read_now
from cockpit.text.output import CLEAR_LINE, safe_json, safe_output
from engines.events.kinds import AnyEvent
from engines.events.records import encode_record
from engines.events.runs import RunEnded, RunStarted, StageStarted
from engines.run_dir.paths import RunDir
from engines.words import RunStatus, StartReason
from tests.cockpit.runs.journaled_runs import a_run

ROOT = Path(__file__).resolve().parents[2]
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]")
BAD = [*map(chr, range(0x20)), "\x7f", *map(chr, range(0x80, 0xA0)), "\u202e", "\u2066", "\u200f", "\u061c", "\u2028"]
BAD += ["\x1b]52;c;eA==\x07", "\x1b]0;title\x1b\\", "\x1b[2J\x1b[H", "\x9b31m", "\x1bP+q\x1b\\", "\r\x1b[K", "\x1b[6n"]
COUNT = 10_000
WRITERS_OF_BYTES = {
    "cockpit/text/output.py": "the door",
    "cockpit/commands/house/metrics.py": "a picture's bytes, never to a terminal",
    "cockpit/supervision/supervisor.py": "to the process that started it, or to supervisor.log; no terminal",
    "cockpit/man.py": "the manual page, which is generated from the parser",
}


def hostile(draw: random.Random) -> str:
    """A text with a control sequence between letters."""
    return "".join(draw.choice(["a", "b", "stage", draw.choice(BAD)]) for _ in range(draw.randint(1, 5)))


class Filler:
    """Fills the fields of events with hostile texts, and counts them."""

    def __init__(self, draw: random.Random) -> None:
        self.draw = draw
        self.texts = 0

    def value(self, kind: Any) -> Any:
        options = typing.get_args(kind)
        origin = typing.get_origin(kind)
        if origin in {typing.Union, types.UnionType}:
            return self.value(next(option for option in options if option is not type(None)))
        if origin in {list, tuple, set, frozenset}:
            return [self.value(options[0]) for _ in range(2)]
        if origin is dict:
            return {self.value(options[0]): self.value(options[1]) for _ in range(2)}
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            return self.fields(kind)
        if isinstance(kind, type) and (kind is str or issubclass(kind, str | Enum)):
            self.texts += 1
            return hostile(self.draw)
        return {bool: True, int: self.draw.randint(1, 9), float: self.draw.random()}.get(kind, 1)

    def fields(self, kind: type[msgspec.Struct]) -> dict[str, Any]:
        skipped = {"w", "seq", "t", "m", "v"}
        return {f.encode_name: self.value(f.type) for f in msgspec.structs.fields(kind) if f.name not in skipped}


def hostile_run(folder: Path, count: int) -> tuple[RunDir, int]:
    """A run whose journal has about `count` hostile texts, in every text field of every kind of event."""
    run, filler = a_run(folder), Filler(random.Random(13))
    started = RunStarted(run="r", recipe="\x1b[2J", reason=StartReason.LAUNCH, stages=["\x1b[31m", "base"], kinds=["a"])
    with run.journal.open("wb") as file:
        file.write(encode_record(started, writer="s", seq=0, t=1.0, m=1.0))
        file.write(encode_record(StageStarted(stage="base", kind="\x9b0m", attempt=1), writer="s", seq=1, t=2.0, m=2.0))
        number = 0
        while filler.texts < count:
            for kind in typing.get_args(AnyEvent):
                tag = kind.__struct_config__.tag
                fields = filler.fields(kind)
                if number % 2:
                    fields |= {name: "base" for name in ("stage",) if name in fields}
                head = {"v": 1, "w": f"w{number % 7}", "seq": number // 7, "t": 3.0 + number, "m": 1.0, "k": tag}
                file.write(json.dumps({**head, **fields}, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
                number += 1
        ended = RunEnded(state=RunStatus.FAILED, reason="\x1b]0;x\x07", launch=99)
        file.write(encode_record(ended, writer="s", seq=2, t=1e6, m=9.0))
    return run, filler.texts


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    made, texts = hostile_run(tmp_path_factory.mktemp("runs"), COUNT)
    assert texts >= COUNT
    state = read_now(made).state
    assert state.unreadable == state.unknown == 0, "every hostile record is read"
    facts = json.loads(made.run_json.read_text())
    made.run_json.write_text(json.dumps(facts | {"recipe": "\x1b[2J\u202e", "parent": "\x9b31m"}))
    return RunDir(made.root.rename(made.root.with_name("20260101-0000-\x1b]0;x\x07\u202e")))


PLAIN = (
    ("ls",), ("show", "RUN"), ("show", "RUN", "--fields"), ("replay", "RUN", "--plain"), ("attach", "RUN", "--plain"),
    ("attach", "RUN", "--plain", "--all"), ("verify", "RUN"), ("stop", "RUN"), ("resume", "RUN"), ("trust", "RUN"),
    ("du",), ("note", "RUN"), ("metrics", "RUN", "--csv"), ("rm", "RUN"), ("prune", "--dry-run"),
    ("completion", "runs"), ("ctl", "RUN", "pause"), ("show", "\x1b[31m"), ("run", "\x1b[31m.toml"), ("\x1b]0;x\x07",),
)  # fmt: skip
JSON = (
    ("ls", "--json"), ("show", "RUN", "--json"), ("replay", "RUN", "--json"), ("attach", "RUN", "--json"),
    ("du", "--json"), ("verify", "RUN", "--json"),
)  # fmt: skip


@pytest.mark.parametrize("words", [*PLAIN, *JSON], ids=lambda words: repr(" ".join(words)))
def test_ten_thousand_hostile_strings_leave_no_control_byte_in_the_output(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    monkeypatch.setattr("cockpit.headless.follow.FOLLOWER", replace(FOLLOWER, every_s=0.0))
    arguments = [str(run.root) if word == "RUN" else word for word in words]
    with suppress(SystemExit):  # the parser refused a word
        main([*arguments, "--runs-dir", str(run.root.parent)])
    output = "".join(capsys.readouterr())
    assert output
    found = CONTROL.search(output.replace(CLEAR_LINE, ""))
    assert found is None, repr(output[max(0, found.start() - 60) : found.end() + 30])
    if words in JSON:
        lines = output.splitlines() if words[0] in {"replay", "attach"} else []
        assert all(isinstance(json.loads(line), dict) for line in lines if line.startswith("{"))


def test_what_is_made_safe_keeps_lines_tabs_and_the_data_of_json() -> None:
    draw = random.Random(7)
    for _ in range(COUNT):
        text = hostile(draw) + "\t" + hostile(draw) + "\n" + hostile(draw)
        safe = safe_output(text)
        assert CONTROL.search(safe) is None
        assert len(safe) == len(text)
        assert (safe.count("\n"), safe.count("\t")) == (text.count("\n"), text.count("\t"))
        for ascii_only in (True, False):
            written = safe_json(json.dumps({"x": text}, ensure_ascii=ascii_only))
            assert CONTROL.search(written) is None
            assert json.loads(written) == {"x": text}


def writes(tree: ast.AST) -> Iterator[str]:
    """Calls that write to a standard stream."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Name) and node.func.id == "print":
            yield "print"
        if isinstance(node.func, ast.Attribute) and node.func.attr in {"write", "writelines"}:
            owner = ast.unparse(node.func.value)
            if owner.startswith(("sys.stdout", "sys.stderr", "sys.__std")):
                yield owner


def test_no_command_prints_but_through_the_one_writer() -> None:
    found = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "cockpit").rglob("*.py")
        if any(writes(ast.parse(path.read_text(encoding="utf-8"))))
    }
    assert found == set(WRITERS_OF_BYTES)


@pytest.mark.parametrize("line", ["print('x')", "sys.stdout.write('x')", "sys.stderr.write(f'{x}')"])
def test_a_command_that_prints_by_hand_is_found(line: str) -> None:
    assert list(writes(ast.parse(line)))
