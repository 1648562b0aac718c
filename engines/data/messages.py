"""Questions about a code base as conversations, with no question in two splits."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import msgspec

from engines.artifacts.data_folder import METADATA
from engines.data.documents import (
    Document,
    corpus_bytes,
    is_text_folder,
    read_documents,
    split_file,
    write_json,
)
from engines.data.facts import Fact, facts_of
from engines.data.readers.row import Message, MessageRow
from engines.data.split import SPLITS, assign_splits, keyed_fraction
from engines.data.text import Report, dropped_text, reread, scan_source
from engines.inputs.source_tree import source_folder
from recipes.problems import OperatorError

MAX_FILE_BYTES = 1_048_576


@dataclass
class _Spool:
    """All examples of a split, on disk, with the number of each that orders the choice of `max_examples`."""

    file: Path
    order: array[float] = field(default_factory=lambda: array("d"))
    kinds: Counter[str] = field(default_factory=Counter)


def prepare_messages(
    data: Path,
    out: Path,
    work: Path,
    *,
    questions: Sequence[str] = ("docstring", "signature", "bases"),
    max_examples: int | None = None,
    max_answer_chars: int = 400,
    val_fraction: float = 0.05,
    test_fraction: float = 0.05,
    seed: int = 42,
    report: Report | None = None,
    phase: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Write a messages folder into `out` and return its metadata.

    Args:
        data: a text folder, whose splits are kept, or a folder of Python sources, which is split here by file.
        out: an existing empty folder.
        work: an existing folder for scratch.
        questions: kinds of facts.
        max_examples: most examples in total, distributed over the splits by their size.
        max_answer_chars: longer answers are left out.
        val_fraction: share of the files for val, when `data` is not split yet.
        test_fraction: share of the files for test, when `data` is not split yet.
        seed: key of the split and of the choice of `max_examples`.
        report: called with progress; an exception from it ends the work.
        phase: called with the name of the phase that begins.

    Raises:
        OperatorError: the sources give no questions.
    """
    enter_phase = phase or (lambda _name: None)
    enter_phase("reading sources")
    dropped: Counter[str] = Counter()
    split_here = not is_text_folder(data)
    if split_here:
        documents = _documents_of_sources(data, val_fraction, test_fraction, seed, dropped, report)
    else:
        documents = _documents_of_text(data, report)
    spools = {split: _Spool(work / f"{split}.spool") for split in SPLITS}
    _spool_examples(documents, spools, questions, max_answer_chars, seed, dropped)
    found = {split: len(spool.order) for split, spool in spools.items()}
    if not found["train"]:
        raise OperatorError(
            f"the train split of {data} gives no questions ({dropped_text(dropped)})",
            f"questions is {', '.join(questions)}; give sources with docstrings, or raise max_answer_chars",
        )
    enter_phase("writing examples")
    quotas = shared_out(max_examples, found)
    splits = {split: _write_split(spools[split], split_file(out, split), quotas[split]) for split in SPLITS}
    metadata: dict[str, Any] = {
        "format": 1,
        "kind": "messages",
        "data": str(data),
        "split": "by file, here" if split_here else "kept from the text stage",
        "seed": seed,
        "val_fraction": val_fraction if split_here else None,
        "test_fraction": test_fraction if split_here else None,
        "questions": list(questions),
        "max_examples": max_examples,
        "max_answer_chars": max_answer_chars,
        "splits": splits,
        "found": found,
        "dropped": dict(sorted(dropped.items())),
    }
    write_json(out / METADATA, metadata)
    return metadata


def _documents_of_text(data: Path, report: Report | None) -> Iterator[tuple[str, Document]]:
    total = corpus_bytes(data)
    done = 0
    for split in SPLITS:
        for document, line_bytes in read_documents(data, split):
            yield split, document
            done += line_bytes
            if report is not None:
                report(done, total, "bytes")


def _documents_of_sources(
    data: Path, val_fraction: float, test_fraction: float, seed: int, dropped: Counter[str], report: Report | None
) -> Iterator[tuple[str, Document]]:
    scan = scan_source(source_folder(str(data)), include=["*.py"], max_file_bytes=MAX_FILE_BYTES)
    dropped.update(scan.dropped)
    if not scan.files:
        raise OperatorError(
            f"{data} has no usable Python sources ({dropped_text(scan.dropped)})",
            "give a text stage, or a folder with *.py files",
        )
    assignment = assign_splits(scan.files, val_fraction=val_fraction, test_fraction=test_fraction, seed=seed)
    done = 0
    for split in SPLITS:
        for name in assignment.names(split):
            yield split, Document(name, reread(scan.files[name], MAX_FILE_BYTES))
            done += 1
            if report is not None:
                report(done, len(scan.files), "files")


def _spool_examples(
    documents: Iterator[tuple[str, Document]],
    spools: dict[str, _Spool],
    questions: Sequence[str],
    max_answer_chars: int,
    seed: int,
    dropped: Counter[str],
) -> None:
    encoder = msgspec.json.Encoder()
    asked_in: dict[bytes, str] = {}
    files = {split: spool.file.open("wb") for split, spool in spools.items()}
    try:
        for split, document in documents:
            for fact in facts_of(document.path, document.text, questions, max_answer_chars, dropped):
                before = asked_in.setdefault(blake2b(fact.question.encode(), digest_size=16).digest(), split)
                if before != split:
                    dropped["question_in_another_split"] += 1
                    continue
                files[split].write(encoder.encode(_row(fact, document.path)) + b"\n")
                spools[split].order.append(keyed_fraction(seed, fact.question, "examples"))
                spools[split].kinds[fact.kind] += 1
    finally:
        for file in files.values():
            file.close()


def _row(fact: Fact, path: str) -> MessageRow:
    turns = [Message("user", fact.question), Message("assistant", fact.answer)]
    return MessageRow(turns, group=path, category=fact.kind)


def shared_out(limit: int | None, found: dict[str, int]) -> dict[str, int]:
    """The number of examples of each split: `limit` in proportion to the examples found, at least one each if possible.

    The largest remainders get what rounding leaves; ties go to the earlier split.
    """
    total = sum(found.values())
    if limit is None or limit >= total:
        return dict(found)
    share = {split: limit * count / total for split, count in found.items()}
    quota = {split: int(share[split]) for split in found}
    by_remainder = sorted(found, key=lambda split: (quota[split] - share[split], SPLITS.index(split)))
    for split in by_remainder[: limit - sum(quota.values())]:
        quota[split] += 1
    for split in (split for split in SPLITS if found[split] and not quota[split]):
        richest = max(quota, key=lambda other: quota[other])
        if quota[richest] > 1:
            quota[richest] -= 1
            quota[split] = 1
    return quota


def _write_split(spool: _Spool, target: Path, quota: int) -> dict[str, Any]:
    chosen = set(sorted(range(len(spool.order)), key=lambda line: (spool.order[line], line))[:quota])
    kinds: Counter[str] = Counter()
    with spool.file.open("rb") as lines, target.open("wb") as out:
        for number, line in enumerate(lines):
            if number in chosen:
                out.write(line)
                kinds[msgspec.json.decode(line, type=MessageRow).category] += 1
    spool.file.unlink()
    return {"examples": len(chosen), "questions": dict(sorted(kinds.items()))}
