"""Tokens are the same bytes from one process or several, and after a kill; parts that are torn are made again."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from engines.artifacts.data_folder import TOKENS_JSON
from engines.data.documents import Document, read_documents
from engines.data.encoders import SentencePieceEncoder, WholeEncoder
from engines.data.shards import TokenShard
from engines.data.sources.documents import SourceFields
from engines.data.split import SPLITS
from engines.data.stage import run
from engines.data.text import TextPart, prepare_text
from engines.data.tokenizing import parts
from engines.data.tokens import prepare_tokens
from engines.data.tokens_manifest import read_tokens_manifest
from engines.inputs.mixture import SourceShare
from engines.run_dir.paths import PARTS
from recipes.problems import OperatorError
from tests.engines.small_corpora import fresh, stdlib_text, tokenizer_of, write_tree
from tests.patience import PATIENCE_S
from tests.stage_context import make_context

PART_BYTES = 20_000


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stdlib_text(tmp_path_factory.mktemp("text"), "json", "email")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory, text: Path) -> Path:
    return tokenizer_of(text, tmp_path_factory.mktemp("tokenizer") / "out")


def content(out: Path) -> dict[str, bytes]:
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, text: Path, tokenizer: Path) -> dict[str, bytes]:
    """The tokens as one process makes them in one part of each split."""
    out = fresh(tmp_path_factory.mktemp("whole") / "out")
    prepare_tokens(text, tokenizer, out)
    return content(out)


def test_two_processes_and_small_parts_give_the_same_bytes(
    tmp_path: Path, text: Path, tokenizer: Path, whole: dict[str, bytes]
) -> None:
    reported: list[tuple[float, float | None]] = []
    out = fresh(tmp_path / "out")
    counts = prepare_tokens(
        text, tokenizer, out, processes=2, part_bytes=PART_BYTES, report=lambda *now: reported.append(now[:2])
    )
    assert content(out) == whole
    assert {"train.bin", "val.bin", "test.bin", "vocab.json", TOKENS_JSON} <= whole.keys()
    assert reported[-1][0] == reported[-1][1] == sum((text / f"{split}.jsonl").stat().st_size for split in SPLITS)
    assert [done for done, _ in reported] == sorted(done for done, _ in reported)
    assert counts["documents"] == sum(len(list(read_documents(text, split))) for split in SPLITS)
    assert json.loads(whole["vocab.json"])["</s>"] == 2
    names = [json.loads(line) for line in whole["train.names"].splitlines()]
    assert names == [document.path for document, _ in read_documents(text, "train")]


def test_numbered_shards_end_with_documents_and_read_as_one_sequence(
    tmp_path: Path, text: Path, tokenizer: Path, whole: dict[str, bytes]
) -> None:
    out = fresh(tmp_path / "out")
    prepare_tokens(text, tokenizer, out, part_bytes=PART_BYTES, shard_tokens=20_000)
    entry = read_tokens_manifest(out).splits["train"]
    names = [shard.file for shard in entry.shards]
    assert names == [f"train-{n:05}-of-{len(names):05}.bin" for n in range(len(names))]
    assert len(names) > 2
    assert b"".join((out / name).read_bytes() for name in names) == whole["train.bin"]
    shard = TokenShard(out, "train", verify=True)
    ends = set(shard.document_ends.tolist())
    edges = np.cumsum([one.tokens for one in entry.shards]).tolist()
    assert set(edges) <= ends
    assert all(one.tokens >= 20_000 for one in entry.shards[:-1])
    one = np.frombuffer(whole["train.bin"], dtype="<u2")
    for begin, end in ((0, 10), (edges[0] - 3, edges[0] + 3), (edges[0], edges[1]), (len(one) - 2, len(one) + 9)):
        assert shard.tokens[begin:end].tolist() == one[begin:end].tolist()
    (out / names[1]).write_bytes((out / names[1]).read_bytes()[:-2])
    with pytest.raises(OperatorError, match=rf"{names[1]} has .* bytes"):
        TokenShard(out, "train")


def test_finished_parts_of_a_killed_attempt_are_kept_and_torn_ones_are_made_again(
    tmp_path: Path, text: Path, tokenizer: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    work, out = fresh(tmp_path / "work"), fresh(tmp_path / "out")
    script = (
        "import sys; from pathlib import Path; from engines.data.tokens import prepare_tokens\n"
        "text, tokenizer, out, work = map(Path, sys.argv[1:])\n"
        "def stay(*_):  # with two parts, until the kill\n"
        f"    while len(list(work.glob('{PARTS}/*.json'))) >= 2: __import__('time').sleep(0.02)\n"
        f"prepare_tokens(text, tokenizer, out, work=work, part_bytes={PART_BYTES}, processes=2, report=stay)"
    )
    argv = [sys.executable, "-c", script, *map(str, (text, tokenizer, fresh(tmp_path / "killed"), work))]
    with subprocess.Popen(argv) as process:
        limit = time.monotonic() + PATIENCE_S
        while len(list(work.glob(f"{PARTS}/*.json"))) < 2:
            assert process.poll() is None
            assert time.monotonic() < limit
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    done = sorted(path.stem for path in (work / PARTS).glob("*.json"))
    assert len(done) >= 2
    torn = work / PARTS / f"{done[0]}.bin"
    torn.write_bytes(torn.read_bytes()[:-1] + b"\xff")
    made: list[str] = []
    write = parts.PartEncoder.write

    def noted(self: Any, part: parts.Part, progress: Callable[[int], None]) -> parts.PartRecord:
        made.append(part.name)
        return write(self, part, progress)

    monkeypatch.setattr(parts.PartEncoder, "write", noted)
    prepare_tokens(text, tokenizer, out, work=fresh(tmp_path / "work2"), earlier=[work], part_bytes=PART_BYTES)
    assert content(out) == whole
    assert done[0] in made
    assert not set(done[1:]) & set(made)


def test_parts_of_another_text_or_tokenizer_are_not_used(
    tmp_path: Path, text: Path, tokenizer: Path, whole: dict[str, bytes]
) -> None:
    other = tokenizer_of(text, tmp_path / "other", vocab_size=500)
    work = fresh(tmp_path / "work")
    with pytest.raises(KeyboardInterrupt):
        prepare_tokens(text, other, fresh(tmp_path / "a"), work=work, part_bytes=PART_BYTES, report=_interrupt_late)
    assert list((work / PARTS).glob("*.json"))
    out = fresh(tmp_path / "out")
    prepare_tokens(text, tokenizer, out, work=fresh(tmp_path / "w"), earlier=[work], part_bytes=PART_BYTES)
    assert content(out) == whole


def _interrupt_late(done: float, total: float | None, _unit: str) -> None:
    if total and done > total / 2:
        raise KeyboardInterrupt


def test_a_stage_takes_the_parts_of_its_earlier_attempt(tmp_path: Path, text: Path, tokenizer: Path) -> None:
    fields = {"name": "tokens", "kind": "prepare", "output": "tokens", "data": "text", "tokenizer": "tokenizer"}
    inputs = {"data": text, "tokenizer": tokenizer}
    first = make_context(tmp_path, fields, inputs=inputs)
    train_bytes = (text / "train.jsonl").stat().st_size

    def interrupt(done: float, _total: float | None, _unit: str) -> None:
        if done > train_bytes:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_tokens(text, tokenizer, fresh(tmp_path / "x"), work=first.work, report=interrupt)
    kept = first.work / PARTS
    assert (kept / "train-000000.json").exists()
    second = make_context(tmp_path, fields, inputs=inputs, attempt=2)
    run(second)
    assert not list(kept.glob("train-*"))
    assert not (second.work / PARTS).exists()


def test_a_full_disk_is_named_and_leaves_no_shard(
    tmp_path: Path, text: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(parts._Made, "add", full)
    out, work = fresh(tmp_path / "out"), fresh(tmp_path / "work")
    with pytest.raises(OperatorError, match=r"parts is full: tokens could not be written") as caught:
        prepare_tokens(text, tokenizer, out, work=work)
    assert "finished parts are kept" in (caught.value.hint or "")
    assert list(out.iterdir()) == []
    assert list((work / PARTS).iterdir()) == []


def test_a_disk_that_is_full_in_the_middle_of_a_shard_keeps_the_parts_and_nothing_else(
    tmp_path: Path, text: Path, tokenizer: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_folder: Path, _records: Any, out: Path, *_: Any) -> None:
        (out / "train.bin").write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    work = fresh(tmp_path / "work")
    with monkeypatch.context() as patch:
        patch.setattr("engines.data.tokens.join_parts", full)
        for place in (None, work):
            out = fresh(tmp_path / f"out{place is None}")
            with pytest.raises(OperatorError, match="is full: tokens could not be written"):
                prepare_tokens(text, tokenizer, out, work=place)
            assert [one.name for one in out.iterdir()] == ([PARTS] if place is None else [])
    assert list((work / PARTS).glob("train-*.json"))
    out = fresh(tmp_path / "again")
    prepare_tokens(text, tokenizer, out, work=fresh(tmp_path / "w"), earlier=[work])
    assert content(out) == whole


def workers() -> list[psutil.Process]:
    """The processes that encode for this one. Any child may have ended since it was listed."""
    found = []
    for one in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):  # of one that was killed, psutil says so too
            if "engines.data.tokenizing.worker" in one.cmdline():
                found.append(one)
    return found


def test_a_killed_process_and_a_bad_line_end_the_stage_with_their_cause(
    tmp_path: Path, text: Path, tokenizer: Path
) -> None:
    def kill_one(*_: Any) -> None:
        for one in workers()[:1]:
            one.kill()
        time.sleep(0.01)

    with pytest.raises(OperatorError, match="was killed by signal 9"):
        prepare_tokens(text, tokenizer, fresh(tmp_path / "a"), processes=2, part_bytes=PART_BYTES, report=kill_one)
    broken = write_tree(tmp_path / "broken", {f"{s}.jsonl": (text / f"{s}.jsonl").read_bytes() for s in SPLITS})
    lines = (broken / "train.jsonl").read_bytes().splitlines(keepends=True)
    (broken / "train.jsonl").write_bytes(b"".join([*lines[:-2], b'{"path": 3}\n', *lines[-2:]]))
    with pytest.raises(OperatorError, match=rf"train\.jsonl:{len(lines) - 1}: not a document"):
        prepare_tokens(broken, tokenizer, fresh(tmp_path / "b"), processes=2, part_bytes=PART_BYTES)


def test_a_stop_leaves_nothing_of_a_part_that_another_process_was_writing(tmp_path: Path, tokenizer: Path) -> None:
    words = " ".join(f"{number * 7919:x}" for number in range(20_000))
    lines = "".join(json.dumps({"path": str(number), "text": f"{number} {words}"}) + "\n" for number in range(100))
    text = write_tree(tmp_path / "text", {"train.jsonl": lines, "val.jsonl": "", "test.jsonl": ""})
    out = fresh(tmp_path / "out")
    seen: list[Path] = []
    limit = time.monotonic() + PATIENCE_S

    def stop_when_both_write(*_: Any) -> None:
        while len(list(out.glob(f"{PARTS}/*.bin.tmp"))) < 2:
            assert time.monotonic() < limit
            time.sleep(0.001)
        (worker,) = workers()
        worker.suspend()
        seen.extend(out.glob(f"{PARTS}/*.bin.tmp"))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_tokens(text, tokenizer, out, processes=2, part_bytes=len(lines) // 2, report=stop_when_both_write)
    assert seen
    assert not list(out.rglob("*.tmp"))


def with_large(folder: Path, text: Path, characters: int) -> Path:
    """A text with large documents among others."""
    lines = (text / "train.jsonl").read_text().splitlines(keepends=True)
    whole = "".join(json.loads(line)["text"] for line in lines)
    whole = (whole * (characters // len(whole) + 1))[:characters]
    large = [json.dumps({"path": f"large-{n}.txt", "text": f"{n} {whole}"}) + "\n" for n in range(2)]
    folder.mkdir()
    at = len(lines) // 2
    (folder / "train.jsonl").write_text("".join([*lines[:at], large[0], *lines[at:], large[1]]))
    for split in ("val", "test"):
        (folder / f"{split}.jsonl").write_text("")
    return folder


@pytest.mark.parametrize("processes", [1, 2])
def test_large_documents_are_encoded_by_other_processes_with_the_same_bytes(
    tmp_path: Path, text: Path, tokenizer: Path, processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = with_large(tmp_path / "text", text, 300_000)
    prepare_tokens(text, tokenizer, whole := fresh(tmp_path / "whole"))
    own: list[int] = []
    real = parts.PartEncoder._encode

    def encode(encoder: parts.PartEncoder, documents: list[Document], *rest: Any) -> None:
        own.extend(len(one.text) for one in documents)
        real(encoder, documents, *rest)

    monkeypatch.setattr(parts, "LARGE_BYTES", 250_000)
    monkeypatch.setattr(parts.PartEncoder, "_encode", encode)
    prepare_tokens(text, tokenizer, out := fresh(tmp_path / "out"), processes=processes, part_bytes=PART_BYTES)
    assert content(out) == content(whole)
    assert own
    assert max(own) < 300_000


def test_a_stop_takes_effect_while_a_large_document_is_encoded(tmp_path: Path, text: Path, tokenizer: Path) -> None:
    text = with_large(tmp_path / "text", text, 12 << 20)
    work, out = fresh(tmp_path / "work"), fresh(tmp_path / "out")
    before = set(psutil.Process().children())  # of the process of the tests
    began: list[psutil.Process] = []

    class StoppedError(Exception):
        pass

    def report(_done: float, _total: float | None, _unit: str) -> None:
        """Stop once another process has begun the part, which takes it many seconds."""
        if (work / PARTS / "train-000000.bin.tmp").exists():
            began.extend(set(psutil.Process().children()) - before)
            raise StoppedError

    with pytest.raises(StoppedError):
        prepare_tokens(text, tokenizer, out, work=work, report=report)
    assert began
    assert not [one for one in began if one.is_running()]
    assert not list(out.iterdir())
    assert not list((work / PARTS).glob("*.tmp"))


def test_the_tokens_of_each_source_are_stated(tmp_path: Path, tokenizer: Path) -> None:
    for name, count in (("one", 30), ("two", 10)):
        write_tree(tmp_path / name, {f"{n}.txt": f"{name} {n}\n" * 20 for n in range(count)})
    shares = [
        TextPart(place=str(tmp_path / name), share=SourceShare(name, None, 1.0), fields=SourceFields())
        for name in ("one", "two")
    ]
    prepare_text(shares, fresh(tmp_path / "text"), val_fraction=0.2, test_fraction=0)
    out = fresh(tmp_path / "out")
    prepare_tokens(tmp_path / "text", tokenizer, out, part_bytes=2000)
    manifest = read_tokens_manifest(out)
    for split in SPLITS:
        of_split = [one[split] for one in manifest.sources.values()]
        assert sum(one["tokens"] for one in of_split) == manifest.splits[split].tokens
        assert sum(one["documents"] for one in of_split) == manifest.splits[split].documents
    assert manifest.sources["one"]["train"]["documents"] > manifest.sources["two"]["train"]["documents"] > 0


def test_an_id_beyond_the_vocabulary_is_refused_and_not_cut_to_its_bits(
    tmp_path: Path, text: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for encoder in (SentencePieceEncoder, WholeEncoder):
        monkeypatch.setattr(encoder, "encode", lambda _self, texts: [[70_000] for _ in texts])
    with pytest.raises(OperatorError, match=r"gives the token 70000 for .*; its vocabulary has 700"):
        prepare_tokens(text, tokenizer, fresh(tmp_path / "out"))
