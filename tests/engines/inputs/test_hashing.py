from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from engines.files import file_sha256
from engines.inputs import hashing
from engines.inputs.hashing import CACHED_BYTES, cache_folder, hashes_of


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def a_large_file(path: Path, byte: bytes = b"x") -> Path:
    path.write_bytes(byte * (CACHED_BYTES + 1))
    os.utime(path, ns=(10**18, 10**18))
    return path


def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the files had been written long ago: only their change time, which nobody can set, is new."""
    monkeypatch.setattr(hashing, "SETTLED_S", -1.0)


def test_hashes_are_those_of_the_contents_in_the_order_of_the_files(tmp_path: Path) -> None:
    files = [tmp_path / f"{n}" for n in range(20)]
    for n, file in enumerate(files):
        file.write_bytes(bytes([n]) * 300_000)
    assert [h.sha256 for h in hashes_of(files)] == [hashlib.sha256(f.read_bytes()).hexdigest() for f in files]
    assert [h.bytes for h in hashes_of(files)] == [300_000] * 20


def test_a_file_that_cannot_be_read_has_the_reason(tmp_path: Path) -> None:
    (tmp_path / "pipe").parent.mkdir(exist_ok=True)
    os.mkfifo(tmp_path / "pipe")
    gone, pipe = hashes_of([tmp_path / "gone", tmp_path / "pipe"])
    assert "No such file" in gone.problem
    assert "not a regular file" in pipe.problem


def test_a_large_unchanged_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settled(monkeypatch)
    reads: list[Path] = []

    def counted(path: Path, *rest: object) -> str:
        reads.append(path)
        return file_sha256(path)

    monkeypatch.setattr(hashing, "file_sha256", counted)
    file = a_large_file(tmp_path / "base.safetensors")
    first = hashes_of([file])
    assert hashes_of([file]) == first
    assert reads == [file]
    assert hashes_of([file], cached=False) == first
    assert reads == [file, file], "without the cache every byte is read"


def test_same_size_and_restored_times_are_not_mistaken_for_the_same_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settled(monkeypatch)
    file = a_large_file(tmp_path / "base.safetensors")
    first = hashes_of([file])
    a_large_file(file, b"y")  # same size, same inode, and the old modification time put on it again
    assert hashes_of([file]) != first


def test_a_file_that_has_just_changed_is_not_stored(tmp_path: Path) -> None:
    hashes_of([a_large_file(tmp_path / "new")])
    assert not cache_folder().exists() or not list(cache_folder().iterdir())


def test_a_cache_that_others_can_write_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settled(monkeypatch)
    file = a_large_file(tmp_path / "base")
    first = hashes_of([file])
    (entry,) = cache_folder().iterdir()
    entry.write_text(entry.read_text().replace(first[0].sha256, "0" * 64))
    assert hashes_of([file])[0].sha256 == "0" * 64, "the entry is what a cached reading uses"
    cache_folder().chmod(0o777)
    assert hashes_of([file]) == first


def test_progress_is_reported_and_what_it_raises_ends_the_work(tmp_path: Path) -> None:
    class StopError(Exception):
        pass

    def stop(_done: int, _total: int) -> None:
        raise StopError

    files = [a_large_file(tmp_path / str(n)) for n in range(3)]
    with pytest.raises(StopError):
        hashes_of(files, stop)
    seen: list[tuple[int, int]] = []
    hashes_of(files, lambda done, total: seen.append((done, total)))
    assert seen[-1] == (3 * (CACHED_BYTES + 1),) * 2
