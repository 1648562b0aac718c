from __future__ import annotations

import os
import random
import select
import socket
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cockpit.runs.live_stream import LiveStream, socket_folder, socket_path
from cockpit.supervision.relay import CLIENT_BUFFER_BYTES, MOST_CLIENTS, REST_BYTES, Relay
from engines.events.records import encode_record
from engines.events.writers import Gap


@pytest.fixture(autouse=True)
def _own_sockets(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A short folder for sockets: pytest's own may be longer than a socket's name."""
    with tempfile.TemporaryDirectory(prefix="cp") as folder:
        monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
        yield


@pytest.fixture
def run_root(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "live.fifo")
    return tmp_path


@pytest.fixture
def pipe(run_root: Path) -> Iterator[int]:
    fd = os.open(run_root / "live.fifo", os.O_RDWR | os.O_NONBLOCK)
    yield fd
    os.close(fd)


@pytest.fixture
def relay(run_root: Path, pipe: int) -> Iterator[Relay]:
    made = Relay(run_root, run_root / "live.fifo")
    yield made
    made.close()


def line(seq: int, reason: str = "") -> bytes:
    return encode_record(Gap(lost=1, reason=reason), writer="e1", seq=seq, t=1.0, m=1.0)


@pytest.fixture
def screen(run_root: Path) -> Iterator[Callable[[Relay], LiveStream]]:
    """A screen that is attached to a relay; closed at the end."""
    made: list[LiveStream] = []

    def attach(relay: Relay) -> LiveStream:
        made.append(LiveStream(run_root))
        assert made[-1].connect()
        relay.pump()
        return made[-1]

    yield attach
    for stream in made:
        stream.close()


def test_every_screen_gets_every_line_and_whole_lines_only(
    screen: Callable[[Relay], LiveStream], relay: Relay, run_root: Path, pipe: int
) -> None:
    screens = [screen(relay) for _ in range(3)]
    os.write(pipe, line(0) + line(1)[:20])
    relay.pump()
    assert [stream.read_lines() for stream in screens] == [[line(0)[:-1]]] * 3
    os.write(pipe, line(1)[20:])
    relay.pump()
    assert [stream.read_lines() for stream in screens] == [[line(1)[:-1]]] * 3
    for stream in screens:
        stream.close()


def test_what_a_dead_supervisor_left_in_the_pipe_is_discarded(
    screen: Callable[[Relay], LiveStream], run_root: Path, pipe: int
) -> None:
    os.write(pipe, line(0))
    relay = Relay(run_root, run_root / "live.fifo")
    stream = screen(relay)
    os.write(pipe, line(1))
    relay.pump()
    assert stream.read_lines() == [line(1)[:-1]]
    relay.close()


def test_a_screen_that_does_not_read_loses_lines_and_delays_no_other(
    screen: Callable[[Relay], LiveStream], relay: Relay, run_root: Path, pipe: int
) -> None:
    slow, quick = screen(relay), screen(relay)
    seen: list[bytes] = []
    for seq in range(3000):
        os.write(pipe, line(seq, "x" * 1500))
        if seq % 20 == 19:
            relay.pump()
            seen += quick.read_lines()
    assert len(seen) == 3000
    (waiting, _) = sorted(relay._clients.values(), key=len, reverse=True)
    assert len(waiting) <= CLIENT_BUFFER_BYTES
    got: list[bytes] = []
    while lines := slow.read_lines():
        got += lines
        relay.pump()
    assert 0 < len(got) < 3000
    assert set(got) <= set(seen), "what arrives is whole"


def test_screens_that_disconnect_are_removed(
    screen: Callable[[Relay], LiveStream], relay: Relay, run_root: Path, pipe: int
) -> None:
    for _ in range(20):
        screen(relay).close()
    stream = screen(relay)
    for seq in range(3):
        os.write(pipe, line(seq))
        relay.pump()
    assert len(relay._clients) == 1
    assert len(stream.read_lines()) == 3
    relay.close()
    assert stream.read_lines() == []
    assert not stream.connected
    assert not stream.connect(), "there is no relay any more"


def test_garbage_in_the_pipe_is_bounded(
    screen: Callable[[Relay], LiveStream], relay: Relay, run_root: Path, pipe: int
) -> None:
    stream, draw = screen(relay), random.Random(1)
    for _ in range(60):
        for _ in range(10):
            os.write(pipe, draw.randbytes(4000).replace(b"\n", b"x"))
        relay.pump()
        assert len(relay._rest) <= REST_BYTES
    os.write(pipe, b"\n" + line(7))
    relay.pump()
    assert stream.read_lines()[-1] == line(7)[:-1]


def test_the_socket_is_private_and_its_path_is_short(run_root: Path, relay: Relay) -> None:
    path = socket_path(run_root)
    assert path is not None
    assert stat.S_ISSOCK(path.stat().st_mode)
    assert not path.stat().st_mode & 0o077
    assert not path.parent.stat().st_mode & 0o077
    long = run_root / ("d" * 200) / ("e" * 100)
    other = socket_path(long)
    assert other is not None
    assert len(bytes(other)) < 107
    assert other != path
    relay.close()
    assert not path.exists()


def test_a_run_is_found_under_every_name_of_its_directory(
    run_root: Path, relay: Relay, tmp_path_factory: pytest.TempPathFactory
) -> None:
    link = tmp_path_factory.mktemp("links") / "run"
    link.symlink_to(run_root)
    stream = LiveStream(link)
    assert stream.connect()
    stream.close()


def test_a_folder_that_others_may_write_to_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cockpit").mkdir(mode=0o777)
    (tmp_path / "cockpit").chmod(0o777)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    folder = socket_folder()
    assert folder is None or folder.parent != tmp_path
    (tmp_path / "cockpit").rmdir()
    (tmp_path / "mine").mkdir(mode=0o700)
    (tmp_path / "cockpit").symlink_to(tmp_path / "mine")
    folder = socket_folder()
    assert folder is None or folder.parent != tmp_path, "a link may be anybody's"


def test_without_a_socket_folder_or_a_pipe_the_relay_does_nothing_and_raises_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cockpit.runs.live_stream.socket_folder", lambda: None)
    relay = Relay(tmp_path, tmp_path / "live.fifo")
    assert relay.readable == []
    relay.pump()
    relay.close()
    assert not LiveStream(tmp_path).connect()
    long = tmp_path / ("ü" * 60)
    long.mkdir()
    monkeypatch.setattr("cockpit.runs.live_stream.socket_folder", lambda: long)
    relay = Relay(tmp_path, tmp_path / "live.fifo")
    assert relay.readable == [], "a socket that cannot listen is not waited on"
    relay.close()


def test_a_stale_socket_of_a_dead_supervisor_is_replaced(screen: Callable[[Relay], LiveStream], run_root: Path) -> None:
    path = socket_path(run_root)
    assert path is not None
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(path))
    stale.close()
    assert not LiveStream(run_root).connect()
    relay = Relay(run_root, run_root / "live.fifo")
    stream = screen(relay)
    assert stream.connected
    relay.close()


def test_new_lines_wake_a_process_that_waits_on_the_stream(
    screen: Callable[[Relay], LiveStream], relay: Relay, run_root: Path, pipe: int
) -> None:
    stream = screen(relay)
    fd = stream.fileno()
    assert fd is not None
    assert select.select([fd], [], [], 0)[0] == []
    os.write(pipe, line(0))
    assert set(select.select(relay.readable, [], [], 5)[0]) <= set(relay.readable)
    relay.pump()
    assert select.select([fd], [], [], 5)[0] == [fd]
    stream.close()
    assert stream.fileno() is None


def test_a_relay_serves_a_bounded_number_of_screens_and_the_refused_one_knows_it(
    screen: Callable[[Relay], LiveStream], relay: Relay, pipe: int
) -> None:
    served = [screen(relay) for _ in range(MOST_CLIENTS)]
    refused = screen(relay)
    os.write(pipe, line(0))
    relay.pump()
    assert refused.read_lines() == []
    assert refused.refused
    assert not refused.connected
    assert len(relay._clients) == MOST_CLIENTS
    assert served[-1].read_lines() == [line(0)[:-1]]
    assert not served[-1].refused
    served.pop().close()
    os.write(pipe, line(1))
    relay.pump()
    os.write(pipe, line(2))
    relay.pump()
    assert refused.connect(), "a place is free again"
    relay.pump()
    os.write(pipe, line(3))
    relay.pump()
    assert refused.read_lines() == [line(3)[:-1]]
    assert not refused.refused


def test_a_relay_removes_the_sockets_of_killed_supervisors_and_no_living_one(
    run_root: Path, relay: Relay, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder, own = socket_folder(), socket_path(run_root)
    assert folder is not None
    assert own is not None
    for number in range(3):
        dead = socket.socket(socket.AF_UNIX)
        dead.bind(str(folder / f"{number}.sock"))
        dead.close()
    other = tmp_path_factory.mktemp("other")
    os.mkfifo(other / "live.fifo")
    second = Relay(other, other / "live.fifo")
    assert set(folder.iterdir()) == {own, socket_path(other)}
    stream = LiveStream(run_root)
    assert stream.connect()
    stream.close()
    second.close()
