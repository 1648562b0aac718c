from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines import control
from engines.control import (
    Request,
    highest_number,
    history,
    numbers_taken,
    pending,
    put_request,
    stamp,
    take,
)
from engines.words import Verb


def leave(control: Path, name: str, body: object = None) -> Path:
    control.mkdir(exist_ok=True)
    path = control / name
    path.write_bytes(body if isinstance(body, bytes) else json.dumps(body).encode())
    return path


@pytest.mark.parametrize("verb", Verb)
def test_a_request_is_read_as_it_was_put_and_is_taken_once(tmp_path: Path, verb: Verb) -> None:
    value = 7.0 if verb.takes_value else None
    made = put_request(tmp_path, verb, value, by="ada")
    assert pending(tmp_path) == [made]
    assert made == Request(1, verb, value, "ada", f"000001-{verb}.json")
    assert take(tmp_path, made)
    assert not take(tmp_path, made)
    assert pending(tmp_path) == []
    assert history(tmp_path) == [made]
    assert put_request(tmp_path, Verb.STOP).number == 2, "numbers of taken requests are not reused"


def test_requests_are_read_in_the_order_of_their_numbers_whatever_their_verbs(tmp_path: Path) -> None:
    verbs = [
        Verb.STOP,
        Verb.PAUSE,
        Verb.CHECKPOINT,
        Verb.CONTINUE,
        Verb.EVALUATE,
        Verb.SAMPLE,
        Verb.STOP,
        Verb.PAUSE,
        Verb.STOP,
        Verb.CHECKPOINT,
        Verb.PAUSE,
    ]
    for verb in verbs:
        put_request(tmp_path, verb)
    assert [request.verb for request in pending(tmp_path)] == verbs
    for request in pending(tmp_path)[:4]:
        take(tmp_path, request)
    assert [request.number for request in history(tmp_path, seen={1, 2, 5})] == [3, 4, *range(6, 12)]
    assert numbers_taken(tmp_path) == {1, 2, 3, 4}


def test_a_request_that_got_its_name_after_a_later_one_is_still_found(tmp_path: Path) -> None:
    early = put_request(tmp_path, Verb.STOP)
    (tmp_path / early.file).rename(tmp_path / "writing")
    (tmp_path / "000001.claim").touch()  # as between claim and name
    put_request(tmp_path, Verb.CHECKPOINT)
    seen = {request.number for request in history(tmp_path)}
    assert seen == {2}
    (tmp_path / "writing").rename(tmp_path / early.file)
    assert [(request.number, request.verb) for request in history(tmp_path, seen=seen)] == [(1, "stop")]


def test_twenty_writers_at_once_get_twenty_numbers(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from engines.control import put_request
sys.stdin.read(1)
print(*(put_request(Path(sys.argv[1]), "checkpoint").number for _ in range(5)))
"""
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    numbers: list[int] = []
    barrier = threading.Barrier(16)

    def write() -> None:
        barrier.wait()
        numbers.extend(put_request(tmp_path, Verb.PAUSE).number for _ in range(5))

    threads = [threading.Thread(target=write) for _ in range(16)]
    for thread in threads:
        thread.start()
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("x")
        writer.stdin.flush()
    for thread in threads:
        thread.join()
    for writer in writers:
        numbers += map(int, writer.communicate()[0].split())
        assert writer.returncode == 0
    assert sorted(numbers) == list(range(1, 101))
    assert [request.number for request in pending(tmp_path)] == list(range(1, 101))
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".tmp")]


def test_only_one_of_many_takers_gets_the_request(tmp_path: Path) -> None:
    request = put_request(tmp_path, Verb.STOP)
    got: list[bool] = []
    threads = [threading.Thread(target=lambda: got.append(take(tmp_path, request))) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == [False] * 11 + [True]


@pytest.mark.parametrize(
    ("verb", "value"),
    [
        ("rm", None), ("", None), ("stop ", None), ("Stop", None), ("stop", 1.0), ("pause", 0.0),
        ("learning-rate", None), ("learning-rate", 0.0), ("learning-rate", -1e-4), ("learning-rate", math.nan),
        ("learning-rate", math.inf), ("max-steps", None), ("max-steps", 0.0), ("max-steps", -5.0), ("max-steps", 1.5),
        ("max-steps", math.nan), ("max-steps", math.inf),
    ],
)  # fmt: skip
def test_a_wrong_verb_or_value_is_refused_and_leaves_no_file(tmp_path: Path, verb: str, value: float | None) -> None:
    with pytest.raises(ValueError, match=r"verb|value|allowed"):
        put_request(tmp_path / "control", verb, value)  # type: ignore[arg-type]
    assert not (tmp_path / "control").exists()


HOSTILE_BODIES = [
    b"", b"{", b"[]", b"null", b"7", b'"stop"', b"\xff\xfe", b"\0" * 100, b"[" * 4000, b'{"a":' * 600,
    b'{"verb":"stop","value":' + b"9" * 3000 + b"}", b" " * 10_000_000,
]  # fmt: skip


@pytest.mark.parametrize("body", HOSTILE_BODIES, ids=lambda body: repr(body[:12]))
@pytest.mark.parametrize("verb", ["stop", "learning-rate"])
def test_a_malformed_request_is_ignored(tmp_path: Path, verb: str, body: bytes) -> None:
    leave(tmp_path, f"000001-{verb}.json", body)
    put_request(tmp_path, Verb.PAUSE)
    assert [request.verb for request in pending(tmp_path)] == ["pause"]


@pytest.mark.parametrize(
    "value", ["NaN", "Infinity", "-Infinity", "0", "-1", "null", "true", '"1"', "[1]", "1" + "0" * 400]
)
def test_a_value_that_an_engine_must_not_see_never_reaches_it(tmp_path: Path, value: str) -> None:
    leave(tmp_path, "000001-learning-rate.json", b'{"verb":"learning-rate","value":%s}' % value.encode())
    leave(tmp_path, "000002-max-steps.json", b'{"verb":"max-steps","value":%s}' % value.encode())
    assert pending(tmp_path) == []


@pytest.mark.parametrize(
    "name",
    [
        "stop.json", "1-stop.json", "000001-stop", "000001-stop.json.tmp", "000001-rm.json", "000001-.json",
        "000001-stop.json\n", "-00001-stop.json", "²²²²²²-stop.json",
        "\u0660\u0660\u0660\u0660\u0660\u0661-stop.json", "000001x-stop.json", "123456abc",
        "9" * 200 + "-stop.json", ".000001-stop.json", "000001-STOP.json", "000001-stop\x1b[2J.json", "999999",
    ],
)  # fmt: skip
def test_a_file_of_another_name_is_not_a_request_and_takes_no_number(tmp_path: Path, name: str) -> None:
    leave(tmp_path, name, {"verb": "stop", "value": None})
    assert pending(tmp_path) == []
    assert put_request(tmp_path, Verb.PAUSE).number in {1, 2}
    assert [request.verb for request in pending(tmp_path)] == ["pause"]


def test_links_pipes_folders_and_devices_are_neither_read_nor_waited_for(tmp_path: Path) -> None:
    control = tmp_path / "control"
    elsewhere = leave(tmp_path / "elsewhere", "secret.json", {"verb": "stop", "value": None})
    control.mkdir()
    (control / "000001-stop.json").symlink_to(elsewhere)
    (control / "000002-stop.json").symlink_to("/dev/zero")
    (control / "000003-stop.json").symlink_to(control / "000003-stop.json")
    os.mkfifo(control / "000004-stop.json")
    (control / "000005-stop.json").mkdir()
    assert pending(control) == []
    assert history(control) == []


@settings(max_examples=200)
@given(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1, max_size=20),
    st.binary(max_size=60),
)
def test_no_name_and_no_content_raises(tmp_path: Path, name: str, body: bytes) -> None:
    path = tmp_path / f"000007-{name}"[:60]
    path.write_bytes(body)
    assert pending(tmp_path) == []
    assert highest_number(tmp_path) == 7
    path.unlink()


def test_a_missing_folder_has_no_requests(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    assert pending(gone) == []
    assert history(gone) == []
    assert highest_number(gone) == 0
    assert not take(gone, Request(1, Verb.STOP, file="000001-stop.json"))
    assert put_request(gone, Verb.STOP).number == 1, "an old run's folder may be created again"


def test_the_name_of_the_requester_is_shortened(tmp_path: Path) -> None:
    leave(tmp_path, "000001-stop.json", {"verb": "stop", "value": None, "by": "x" * 3000})
    leave(tmp_path, "000002-stop.json", {"verb": "pause", "by": {"a": 1}})
    first, second = pending(tmp_path)
    assert len(first.by) == 80
    assert second.verb == "stop", "the name of the file has the verb"


def test_a_request_leaves_no_claim_behind_and_a_number_is_never_given_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "control"
    first = put_request(folder, Verb.CHECKPOINT)
    assert [path.name for path in folder.iterdir()] == [first.file]
    assert take(folder, first)
    # This process counts before another one's request is there, and claims after its claim was removed.
    monkeypatch.setattr(control, "highest_number", lambda _folder: 0)
    second = put_request(folder, Verb.CHECKPOINT)
    assert second.number == first.number + 1
    assert [path.name for path in folder.iterdir() if path.is_file()] == [second.file]
    (folder / f"{second.number + 1:06d}.claim").touch()
    assert put_request(folder, Verb.STOP).number == second.number + 2, "another process has claimed that one"
    assert (folder / f"{second.number + 1:06d}.claim").exists(), "its request may still come"


def test_the_stamp_of_requests_changes_with_each_that_comes_or_is_taken(tmp_path: Path) -> None:
    folder = tmp_path / "control"
    seen = [stamp(folder)]
    request = put_request(folder, Verb.CHECKPOINT)
    os.utime(folder, ns=(1, 1))
    seen.append(stamp(folder))
    assert take(folder, request)
    seen.append(stamp(folder))
    assert len(set(seen)) == 3
    assert stamp(folder) == seen[-1]
