"""Questions about a code base as conversations, with no question in two splits."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import msgspec

from engines.artifacts.data_folder import METADATA
from engines.data.code.build_systems import BuildSystem, build_systems
from engines.data.code.extract import ParseCounts, definitions_of, language_of, require_parsers
from engines.data.code.licenses import license_of
from engines.data.code.probe import Probe, row_texts
from engines.data.code.project import build_facts, stack_facts
from engines.data.code.questions import Fact, facts_of, reason_to_drop
from engines.data.code.samples import file_fact, has_keyword
from engines.data.code.scan import CodePolicy, CodeScan, reread, scan_code
from engines.data.code.secrets import secrets_in
from engines.data.documents import (
    PROBE,
    Document,
    corpus_bytes,
    is_text_folder,
    read_documents,
    split_file,
    write_json,
)
from engines.data.readers.row import Message, MessageRow
from engines.data.split import SPLITS, assign_splits, keyed_fraction
from engines.data.text import Report, dropped_text
from engines.inputs.code_tree import CodeRules
from engines.inputs.source_tree import source_folder
from recipes.problems import OperatorError
from recipes.stages.code_fields import QUESTIONS, CodeFields

PROJECT = "project"
"""The group of the questions about the project as a whole, which are always in the train split."""
_ONE_GROUP = frozenset({"c", "cpp"})
"""Languages in which a file and its header describe the same things, so they belong into one split."""


@dataclass(frozen=True)
class CodeOptions:
    """What to ask about a code base; the names and values are those of the recipe's fields."""

    questions: Sequence[str] = QUESTIONS
    max_examples: int | None = None
    max_answer_chars: int = 400
    keywords: Sequence[str] = ()
    max_file_chars: int = 2000
    repeat: Mapping[str, int] = field(default_factory=dict)
    probe_rows: int = 0
    policy: CodePolicy = field(default_factory=CodePolicy)

    @classmethod
    def of(cls, stage: CodeFields) -> CodeOptions:
        """The options of a stage's fields."""
        return cls(
            questions=tuple(stage.questions),
            max_examples=stage.max_examples,
            max_answer_chars=stage.max_answer_chars,
            keywords=tuple(stage.keywords),
            max_file_chars=stage.max_file_chars,
            repeat={"build": stage.repeat_build, "stack": stage.repeat_stack},
            probe_rows=stage.probe_rows or 0,
            policy=CodePolicy(
                CodeRules.of(stage), stage.max_source_bytes, tuple(stage.licenses), stage.unknown_license == "keep"
            ),
        )


@dataclass
class _Spool:
    """All examples of a split, on disk, with the number of each that orders the choice of `max_examples`, and the
    digest of its question."""

    file: Path
    order: array[float] = field(default_factory=lambda: array("d"))
    asked: list[bytes] = field(default_factory=list)


@dataclass
class _Found:
    """What was found, for metadata: counts by reason, by rule of secrets and by language."""

    dropped: Counter[str] = field(default_factory=Counter)
    secrets: Counter[str] = field(default_factory=Counter)
    parsed: ParseCounts = field(default_factory=ParseCounts)
    licenses: Counter[str] = field(default_factory=Counter)


def prepare_messages(
    data: Path,
    out: Path,
    work: Path,
    options: CodeOptions | None = None,
    *,
    val_fraction: float = 0.05,
    test_fraction: float = 0.05,
    seed: int = 42,
    report: Report | None = None,
    phase: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Write a messages folder into `out` and return its metadata.

    Args:
        data: a text folder, whose splits are kept, or a folder of sources, which is split here by file.
        out: an existing empty folder.
        work: an existing folder for scratch.
        options: what to ask.
        val_fraction: share of the files for val, when `data` is not split yet.
        test_fraction: share of the files for test, when `data` is not split yet.
        seed: key of the split and of the choice of `max_examples`.
        report: called with progress; an exception from it ends the work.
        phase: called with the name of the phase that begins.

    Raises:
        OperatorError: the sources give no questions, or a language has no parser here.
    """
    options = options or CodeOptions()
    enter_phase = phase or (lambda _name: None)
    enter_phase("reading sources")
    found = _Found()
    split_here = not is_text_folder(data)
    systems: list[BuildSystem] = []
    if split_here:
        scan = _scanned(data, options, found, report)
        systems = build_systems(scan.builds)
        documents = _documents_of_sources(scan, options, val_fraction, test_fraction, seed, report)
        project = _project_facts(scan, systems, options, found)
    else:
        documents = _documents_of_text(data, options, found, report)
        project = []
    spools = {split: _Spool(work / f"{split}.spool") for split in SPLITS}
    probe = Probe(options.probe_rows, seed) if options.probe_rows else None
    ambiguous = _spool_examples(documents, spools, options, seed, found, probe)
    lines = {split: _usable(spool, ambiguous) for split, spool in spools.items()}
    usable = {split: len(numbers) for split, numbers in lines.items()}
    if not usable["train"] and not project:
        raise OperatorError(
            f"the train split of {data} gives no questions ({dropped_text(found.dropped)})",
            f"questions is {', '.join(options.questions)}; give sources with definitions, or raise max_answer_chars",
        )
    enter_phase("writing examples")
    quotas = shared_out(options.max_examples, usable)
    splits = {
        split: _write_split(
            spools[split],
            lines[split],
            split_file(out, split),
            quotas[split],
            project if split == "train" else [],
            options,
            probe if split != "test" else None,
        )
        for split in SPLITS
    }
    asked = _write_probe(out, probe)
    metadata: dict[str, Any] = {
        "format": 1,
        "kind": "messages",
        "data": str(data),
        "split": "by file, here" if split_here else "kept from the text stage",
        "seed": seed,
        "val_fraction": val_fraction if split_here else None,
        "test_fraction": test_fraction if split_here else None,
        "questions": list(options.questions),
        "max_examples": options.max_examples,
        "max_answer_chars": options.max_answer_chars,
        "keywords": list(options.keywords),
        "max_file_chars": options.max_file_chars,
        "repeat": {kind: count for kind, count in options.repeat.items() if count > 1},
        **({} if probe is None else {"probe_rows": asked}),
        "languages": found.parsed.as_table(),
        "build_systems": [{"name": one.name, "file": one.file, "commands": one.commands} for one in systems],
        "licenses": dict(sorted(found.licenses.items())),
        "secrets": dict(sorted(found.secrets.items())),
        "splits": splits,
        "found": usable,
        "dropped": dict(sorted(found.dropped.items())),
    }
    write_json(out / METADATA, metadata)
    return metadata


@dataclass(frozen=True)
class _Item:
    """A document with its split, its language and its group."""

    split: str
    document: Document
    language: str
    group: str


def _scanned(data: Path, options: CodeOptions, found: _Found, report: Report | None) -> CodeScan:
    scan = scan_code(source_folder(str(data)), options.policy, report)
    found.dropped.update(scan.dropped)
    found.licenses.update(scan.licenses)
    if not scan.files:
        raise OperatorError(
            f"{data} has no usable sources ({dropped_text(scan.dropped)})",
            f"languages is {', '.join(options.policy.rules.languages)}; give a text stage, or a folder with such files",
        )
    require_parsers(scan.languages.values(), options.policy.rules.languages)
    return scan


def _documents_of_text(data: Path, options: CodeOptions, found: _Found, report: Report | None) -> Iterator[_Item]:
    total = corpus_bytes(data)
    done = 0
    for split in SPLITS:
        for document, line_bytes in read_documents(data, split):
            done += line_bytes
            if report is not None:
                report(done, total, "bytes")
            language = language_of(document.path, document.text)
            name = license_of(document.path, document.text, {})
            reason = options.policy.reason_to_drop(document.text, name)
            if language not in options.policy.rules.languages:
                reason = "other_language"
            if reason:
                found.dropped[reason] += 1
                continue
            require_parsers([language], options.policy.rules.languages)
            found.licenses[name] += 1
            yield _Item(split, document, language, document.path)


def _documents_of_sources(
    scan: CodeScan, options: CodeOptions, val_fraction: float, test_fraction: float, seed: int, report: Report | None
) -> Iterator[_Item]:
    group_of = {name: _group(name, scan.languages[name]) for name in scan.files}
    groups = set(group_of.values())
    assignment = assign_splits(groups, val_fraction=val_fraction, test_fraction=test_fraction, seed=seed)
    done = 0
    for split in SPLITS:
        for name in sorted(name for name, group in group_of.items() if assignment.split_of[group] == split):
            text = reread(scan.files[name], options.policy.max_file_bytes)
            yield _Item(split, Document(name, text), scan.languages[name], group_of[name])
            done += 1
            if report is not None:
                report(done, len(scan.files), "files")


def _group(path: str, language: str) -> str:
    """The group of a file: its path, without the suffix in languages whose headers and sources belong together."""
    return path.rpartition(".")[0] if language in _ONE_GROUP else path


def _project_facts(scan: CodeScan, systems: list[BuildSystem], options: CodeOptions, found: _Found) -> list[Fact]:
    top = sorted({name.partition("/")[0] for name in scan.files if "/" in name})
    facts = build_facts(systems) if "build" in options.questions else []
    if "stack" in options.questions:
        facts += stack_facts(systems, Counter(scan.languages.values()), scan.license_of_folder.get("", ""), top)
    kept = []
    for fact in {fact.question: fact for fact in facts}.values():
        reason = reason_to_drop(fact, options.max_file_chars)
        found.dropped.update([reason] if reason else [])
        kept += [] if reason else [fact]
    return kept


def _spool_examples(
    documents: Iterator[_Item],
    spools: dict[str, _Spool],
    options: CodeOptions,
    seed: int,
    found: _Found,
    probe: Probe | None = None,
) -> set[bytes]:
    """Write every example to its split's spool; returns the digests of questions with two different answers."""
    encoder = msgspec.json.Encoder()
    asked: dict[bytes, tuple[str, bytes]] = {}
    ambiguous: set[bytes] = set()
    files = {split: spool.file.open("wb") for split, spool in spools.items()}
    try:
        for item in documents:
            for fact in _facts(item, options, found, probe if item.split == "test" else None):
                question, answer = _digest(fact.question), _digest(fact.answer)
                before = asked.get(question)
                if before is None:
                    asked[question] = (item.split, answer)
                    files[item.split].write(encoder.encode(_row(fact, item.group)) + b"\n")
                    spools[item.split].order.append(keyed_fraction(seed, fact.question, "examples"))
                    spools[item.split].asked.append(question)
                elif before[1] != answer or question in ambiguous:
                    found.dropped["defined_twice"] += 1 if question in ambiguous else 2
                    ambiguous.add(question)
                else:
                    same = before[0] == item.split
                    found.dropped["duplicate_question" if same else "question_in_another_split"] += 1
    finally:
        for file in files.values():
            file.close()
    return ambiguous


def _facts(item: _Item, options: CodeOptions, found: _Found, probe: Probe | None) -> list[Fact]:
    document = item.document
    secrets = secrets_in(document.text)
    found.secrets.update(rule for rule, _ in secrets)
    hidden = [value for _, value in secrets]
    definitions = definitions_of(document.path, document.text, item.language, found.dropped, found.parsed)
    if probe is not None:
        probe.hold_out(definitions, item.group, hidden)
    facts = facts_of(definitions, options.questions, options.max_answer_chars, found.dropped, hidden)
    if has_keyword(document.path, options.keywords):
        fact = file_fact(document.path, document.text, item.language, options.max_file_chars)
        reason = "answer_too_long" if fact is None else reason_to_drop(fact, options.max_file_chars, hidden)
        found.dropped.update([reason] if reason else [])
        facts += [fact] if fact is not None and not reason else []
    return facts


def _digest(text: str) -> bytes:
    return blake2b(text.encode("utf-8", "replace"), digest_size=16).digest()


def _row(fact: Fact, group: str) -> MessageRow:
    turns = [Message("user", fact.question), Message("assistant", fact.answer)]
    return MessageRow(turns, group=group, category=fact.kind)


def _usable(spool: _Spool, ambiguous: set[bytes]) -> list[int]:
    """The lines of a spool whose question has one answer."""
    return [line for line, question in enumerate(spool.asked) if question not in ambiguous]


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


def _write_split(
    spool: _Spool,
    usable: list[int],
    target: Path,
    quota: int,
    project: Sequence[Fact],
    options: CodeOptions,
    probe: Probe | None,
) -> dict[str, Any]:
    """Write a split; questions about the project are repeated here, after the split, and counted once. `probe` is given
    for the splits that a training sees."""
    chosen = set(sorted(usable, key=lambda line: (spool.order[line], line))[:quota])
    kinds: Counter[str] = Counter()
    rows = 0
    encoder = msgspec.json.Encoder()
    with spool.file.open("rb") as lines, target.open("wb") as out:
        for number, line in enumerate(lines):
            if number in chosen:
                out.write(line)
                rows += 1
                row = msgspec.json.decode(line, type=MessageRow)
                kinds[row.category] += 1
                if probe is not None:
                    probe.train_on(f"{row.prompt} {row.answer}")
        for fact in project:
            if probe is not None:
                probe.train_on(f"{fact.question} {fact.answer}")
            count = options.repeat.get(fact.kind, 1)
            out.write((encoder.encode(_row(fact, PROJECT)) + b"\n") * count)
            rows += count
            kinds[fact.kind] += 1
    spool.file.unlink()
    return {"examples": kinds.total(), "rows": rows, "questions": dict(sorted(kinds.items()))}


def _write_probe(out: Path, probe: Probe | None) -> int:
    """Write the fact probe beside the splits; returns the number of its rows."""
    if probe is None:
        return 0
    rows = probe.as_rows()
    if not rows:
        raise OperatorError(
            "probe_rows — the test split has no fact that training never names, with three others to choose from",
            "raise test_fraction, give a larger code base, or remove probe_rows",
        )
    split_file(out, PROBE).write_text(row_texts(rows), "utf-8")
    return len(rows)
