"""Writes are atomic, and only regular files are read."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path

import pytest

from engines.files import (
    Draft,
    atomic_file,
    atomic_path,
    file_sha256,
    fsync_folder,
    open_append,
    open_regular,
    read_into,
    read_regular_bytes,
    read_regular_text,
    refuse_special_files,
    write_durably,
    write_json,
)
from engines.json_text import read_json, read_object
from recipes.problems import OperatorError

# ---- small files


def _full(*_: object) -> int:
    raise OSError(28, "No space left on device")


def test_a_small_file_is_replaced_atomically(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "exit.json"
    write_durably(path, b"old" * 100)
    real = os.write
    for failing in ("write", "fsync", "rename"):
        with monkeypatch.context() as patch:
            if failing == "write":
                patch.setattr(os, "write", lambda fd, data: real(fd, data[:7]) if len(data) > 20 else _full())
            elif failing == "fsync":
                patch.setattr(os, "fsync", _full)
            else:
                patch.setattr(Path, "rename", _full)
            with pytest.raises(OSError, match="No space"):
                write_durably(path, b"new" * 20)
        assert path.read_bytes() == b"old" * 100
        assert os.listdir(tmp_path) == ["exit.json"]


def test_only_its_owner_can_read_a_small_file(tmp_path: Path) -> None:
    write_durably(tmp_path / "f", b"1")
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o600


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, bytes(data[:3])))
    write_durably(tmp_path / "f", b"0123456789" * 20)
    assert (tmp_path / "f").read_bytes() == b"0123456789" * 20


def test_many_writers_of_one_small_file_leave_one_complete_text(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    texts = [str(number).encode() * 5000 for number in range(8)]
    threads = [
        threading.Thread(target=lambda text=text: [write_durably(path, text) for _ in range(20)]) for text in texts
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes() in texts
    assert os.listdir(tmp_path) == ["summary.json"]


# ---- large files


def test_a_large_file_has_its_name_only_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"old")
    with atomic_file(path) as file:
        file.write(b"new")
        file.flush()
        assert sorted(os.listdir(tmp_path)) == ["m.gguf", "m.gguf.partial"]
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["m.gguf"]


@pytest.mark.parametrize("error", [ValueError("wrong"), KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_a_failure_keeps_the_old_file_and_deletes_the_temporary_one(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"old")

    def write_half() -> None:
        with atomic_file(path) as file:
            file.write(b"half")
            raise error

    with pytest.raises(type(error)):
        write_half()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["m.gguf"]


@pytest.mark.parametrize("failing", ["fsync", "rename"])
def test_a_disk_that_fails_at_the_end_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"old")
    monkeypatch.setattr(*((os, "fsync", _full) if failing == "fsync" else (Path, "rename", _full)))
    with pytest.raises(OSError, match="No space"), atomic_file(path) as file:
        file.write(b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["m.gguf"]


def test_bytes_are_on_the_disk_before_the_name_and_the_name_before_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported: list[str] = []
    sync, rename = os.fsync, Path.rename

    def fsync(fd: int) -> None:
        reported.append(f"fsync {Path(f'/proc/self/fd/{fd}').readlink().name}")
        sync(fd)

    def renamed(self: Path, target: Path) -> Path:
        reported.append(f"rename {self.name} {target.name}")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "rename", renamed)
    with atomic_file(tmp_path / "f") as file:
        file.write(b"1")
    assert reported == ["fsync f.partial", "rename f.partial f", f"fsync {tmp_path.name}"]


def test_a_foreign_program_may_replace_the_temporary_file(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "m.gguf", tmp_path / "made-m.gguf") as path:
        path.unlink()
        subprocess.run(["sh", "-c", f"printf 123 > '{path}'"], check=True)
    assert (tmp_path / "m.gguf").read_bytes() == b"123"
    assert os.listdir(tmp_path) == ["m.gguf"]


def test_a_program_that_leaves_no_file_is_an_error_and_not_an_empty_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "m.gguf") as path:
        path.unlink()
    assert os.listdir(tmp_path) == []


def test_a_second_writer_of_a_large_file_is_refused(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "f") as file:
        file.write(b"first")
        with pytest.raises(OperatorError, match="another process is writing this file"):
            Draft(tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == b"first"
    Draft(tmp_path / "f").abandon()


WRITER = """
import os, signal, sys
from pathlib import Path
from engines.files import atomic_file
with atomic_file(Path(sys.argv[1])) as file:
    file.write(b"half" * 1000)
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_next_writer_reuses_what_a_killed_writer_left(tmp_path: Path) -> None:
    path = tmp_path / "f"
    done = subprocess.run([sys.executable, "-c", WRITER, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert os.listdir(tmp_path) == ["f.partial"]
    with atomic_file(path) as file:
        file.write(b"whole")
    assert path.read_bytes() == b"whole"
    assert os.listdir(tmp_path) == ["f"]


def test_a_link_in_place_of_the_temporary_file_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"precious")
    (tmp_path / "f.partial").symlink_to("precious")
    with pytest.raises(OSError, match="symbolic"):
        Draft(tmp_path / "f")
    assert (tmp_path / "precious").read_bytes() == b"precious"


def test_a_file_system_without_folder_sync_is_not_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(number: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", lambda _fd: refuse(22))
    fsync_folder(tmp_path)
    monkeypatch.setattr(os, "fsync", lambda _fd: refuse(5))
    with pytest.raises(OSError, match="Input/output"):
        fsync_folder(tmp_path)


def test_a_report_that_cannot_be_json_leaves_the_old_one(tmp_path: Path) -> None:
    write_json(tmp_path / "parity.json", {"passed": True})
    with pytest.raises(TypeError):
        write_json(tmp_path / "parity.json", {"passed": object()})
    assert read_json(tmp_path / "parity.json") == {"passed": True}
    assert os.listdir(tmp_path) == ["parity.json"]


# ---- regular files only


@pytest.fixture(params=["pipe", "device", "folder", "socket", "link to a pipe", "link to a device"])
def no_file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "config.json"
    match request.param:
        case "pipe":
            os.mkfifo(path)
        case "device":
            if not os.access("/dev/zero", os.R_OK):
                pytest.skip("no /dev/zero")
            path = Path("/dev/zero")
        case "folder":
            path.mkdir()
        case "socket":
            # A short name: a socket's path has at most 107 bytes.
            with socket.socket(socket.AF_UNIX) as made:
                here = os.open(tmp_path, os.O_RDONLY)
                made.bind(f"/proc/self/fd/{here}/config.json")
                os.close(here)
        case "link to a pipe":
            os.mkfifo(tmp_path / "pipe")
            path.symlink_to("pipe")
        case "link to a device":
            path.symlink_to("/dev/zero")
    return path


def test_a_file_that_is_not_regular_is_refused_immediately(no_file: Path) -> None:
    for read in (lambda: read_regular_bytes(no_file, 100), lambda: file_sha256(no_file), lambda: read_json(no_file)):
        with pytest.raises(OSError) as error:  # noqa: PT011 - a socket, a folder and a pipe have different messages
            read()
        assert error.value.strerror
    with pytest.raises(OperatorError, match="cannot be read"):
        read_object(no_file)


def test_a_large_file_is_refused_and_one_of_the_allowed_size_is_not(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"x" * 100)
    assert read_regular_bytes(path, 100) == b"x" * 100
    with pytest.raises(OSError, match="larger than 99 bytes"):
        read_regular_bytes(path, 99)
    with open_regular(path) as file:
        assert file.read() == b"x" * 100


def test_a_small_file_takes_no_more_memory_than_it_has_whatever_it_may_have(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(b"x" * 1000)
    tracemalloc.start()
    try:
        assert len(read_regular_bytes(path)) == 1000
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert read_regular_bytes(Path("/proc/self/status")).startswith(b"Name:"), "a file that says it has no bytes"


def test_a_file_that_reports_no_size_is_bounded_too() -> None:
    assert Path("/proc/self/status").stat().st_size == 0
    with pytest.raises(OSError, match="larger than 10 bytes"):
        read_regular_bytes(Path("/proc/self/status"), 10)


def test_a_link_is_followed_only_where_the_caller_allows_it(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("text")
    (tmp_path / "link").symlink_to("f")
    assert read_regular_text(tmp_path / "link", 100) == "text"
    with pytest.raises(OSError, match="symbolic"):
        read_regular_bytes(tmp_path / "link", 100, follow=False)


def test_a_text_that_is_not_utf_8_is_a_value_error(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"\xff")
    with pytest.raises(ValueError, match="utf-8"):
        read_regular_text(tmp_path / "f", 100)
    assert read_regular_text(tmp_path / "f", 100, errors="replace") == "\ufffd"


def test_a_hash_reports_its_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engines.files.CHUNK_BYTES", 4)
    (tmp_path / "f").write_bytes(b"0123456789")
    reported: list[int] = []
    assert file_sha256(tmp_path / "f", reported.append) == hashlib.sha256(b"0123456789").hexdigest()
    assert reported == [4, 8, 10]


def test_a_log_is_appended_to_only_if_it_is_a_file(no_file: Path) -> None:
    with pytest.raises(OSError):  # noqa: PT011 - a socket, a folder and a pipe have different messages
        open_append(no_file)


def test_only_its_owner_can_read_a_new_log(tmp_path: Path) -> None:
    for _ in range(2):
        fd = open_append(tmp_path / "log")
        os.write(fd, b"line\n")
        os.close(fd)
    assert (tmp_path / "log").read_text() == "line\nline\n"
    assert stat.S_IMODE((tmp_path / "log").stat().st_mode) == 0o600


def test_a_models_folder_with_a_pipe_is_refused_before_a_library_waits_for_it(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "tokenizer.json").symlink_to("config.json")
    (tmp_path / "gone.json").symlink_to("nowhere")
    os.mkfifo(tmp_path / "editor.pipe")
    refuse_special_files(tmp_path)
    os.mkfifo(tmp_path / "generation_config.json")
    with pytest.raises(OperatorError, match=r"generation_config\.json is not a regular file"):
        refuse_special_files(tmp_path)


def test_a_part_of_a_file_is_read_completely_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"0123456789")
    real = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, places, at: real(fd, [places[0][:2]], at))
    place = bytearray(5)
    read_into(path, 3, memoryview(place))
    assert place == b"34567"
    with pytest.raises(EOFError, match="truncated"):
        read_into(path, 6, memoryview(place))
