"""Token shards from a text folder and a tokenizer, with all cores: the corpus is never in memory.

A literal "<s>" or "<|im_end|>" in a document is ordinary text; the only special token in a shard is the document's end.
What a tokenizer does not preserve is counted: SentencePiece reads U+2581 as a space (as do transformers and llama.cpp),
some vocabularies cannot spell every character, and some tokenizers normalize text.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from engines.artifacts.data_folder import METADATA, TOKENS_JSON
from engines.data.documents import corpus_bytes, split_file
from engines.data.encoders import Encoder, load_encoder
from engines.data.shards import TokenShard
from engines.data.split import SPLITS
from engines.data.text import Report
from engines.data.tokenizer_files import copy_tokenizer
from engines.data.tokenizing.joining import join_parts
from engines.data.tokenizing.parts import COUNTS, Job, Part, PartRecord, finished, parts_of
from engines.data.tokenizing.pool import LEAST_BYTES, encode_parts
from engines.data.tokenizing.worker import full_disk
from engines.data.tokens_manifest import DTYPES, FORMAT, ID_FILES, TOKENIZER, TokensManifest, dtype_for
from engines.files import file_sha256
from engines.json_text import read_json
from engines.run_dir.paths import PARTS
from recipes.problems import OperatorError

PART_BYTES = 16 << 20
"""Bytes of lines of a part: what a kill costs at most, for each process."""
_VERSION = 1
"""Of the content of parts; parts of another one are not used."""


def prepare_tokens(
    data: Path,
    tokenizer: Path,
    out: Path,
    *,
    eos_token: str | None = None,
    shard_tokens: int | None = None,
    processes: int = 1,
    part_bytes: int = PART_BYTES,
    work: Path | None = None,
    earlier: Sequence[Path] = (),
    report: Report | None = None,
    warn: Callable[[str], None] = lambda _text: None,
) -> dict[str, Any]:
    """Write a tokens folder into `out`.

    Args:
        data: a text folder.
        tokenizer: a folder with tokenizer.json or tokenizer.model.
        out: an existing empty folder.
        eos_token: the token that ends each document; by default, the tokenizer's.
        shard_tokens: tokens after which a document ends a shard; one file for each split by default.
        processes: processes that encode at once.
        part_bytes: bytes of the text's lines that are encoded at a time.
        work: folder for scratch; `out` by default.
        earlier: scratch folders of earlier attempts, whose finished parts are used.
        report: called with progress; an exception from it ends the work.
        warn: takes what the operator should know about the tokenizer.

    Returns:
        The totals `tokens`, `documents`, `bytes`, `control_strings` (documents that contain the text of a special
        token), `space_marks` (documents with U+2581 that is read as a space), `unknown_tokens` (tokens of texts that
        the vocabulary cannot spell), `changed` (of the first documents, those that their tokens do not decode to) and
        `left_out` (documents whose text the tokenizer reads as control tokens).

    Raises:
        OperatorError: no usable tokenizer, no documents, or a full disk.
    """
    encoder, warnings = load_encoder(tokenizer, eos_token)
    for warning in warnings:
        warn(warning)
    folder = (work or out) / PARTS
    job = _job(data, tokenizer, encoder, folder)
    try:
        folder.mkdir()
        records = _encoded(job, encoder, earlier, processes, part_bytes, corpus_bytes(data), report)
        _write(job, encoder, records, out, shard_tokens)
        for one in (folder, *(place / PARTS for place in earlier)):
            shutil.rmtree(one, ignore_errors=True)
    except OSError as error:
        if (known := full_disk(error, str(folder))) is None:
            raise
        for made in set(out.iterdir()) - {folder}:  # a run on the same disk then has room to say so
            if made.is_dir():
                shutil.rmtree(made)
            else:
                made.unlink()
        raise known from error
    totals = Counter[str]()
    for record in records:
        totals.update(record.counts)
        totals.update({"tokens": record.tokens, "documents": record.documents, "bytes": record.text_bytes})
    return {name: totals[name] for name in ("tokens", "documents", "bytes", *COUNTS)}


def _job(data: Path, tokenizer: Path, encoder: Encoder, folder: Path) -> Job:
    """The job of a text, with a key that another text, tokenizer or end token does not have."""
    try:
        metadata = read_json(data / METADATA)
    except (OSError, ValueError):
        metadata = {}
    sources = metadata.get("sources") if isinstance(metadata, dict) else None
    names = [str(one["name"]) for one in sources if "name" in one] if isinstance(sources, list) else []
    texts = {split: _identity(split_file(data, split)) for split in SPLITS}
    sha256 = file_sha256(tokenizer / encoder.file)
    content = [_VERSION, texts, encoder.file, sha256, encoder.eos_id, encoder.vocab_size, names]
    return Job(
        data=str(data),
        tokenizer=str(tokenizer),
        encoder=encoder.file,
        eos_token=encoder.eos_token,
        dtype=DTYPES[dtype_for(encoder.vocab_size)],
        folder=str(folder),
        key=hashlib.sha256(json.dumps(content).encode()).hexdigest(),
        sources=names,
    )


def _identity(file: Path) -> list[int] | None:
    """What a changed file of a text does not keep."""
    if not file.is_file():
        return None
    status = file.stat()
    return [status.st_size, status.st_mtime_ns]


def _encoded(
    job: Job,
    encoder: Encoder,
    earlier: Sequence[Path],
    processes: int,
    part_bytes: int,
    total: int,
    report: Report | None,
) -> list[PartRecord]:
    """The records of all parts, in order; those that an earlier attempt has finished are taken from it."""
    folder, done = Path(job.folder), 0

    def advance(size: int) -> None:
        nonlocal done
        done += size
        if report is not None:
            report(done, total, "bytes")

    parts = [part for split in SPLITS for part in parts_of(Path(job.data), split, part_bytes)]
    missing = []
    for part in parts:
        if _taken(folder, job.key, part, earlier):
            advance(part.end - part.begin)
        else:
            missing.append(part)
    waiting = sum(part.end - part.begin for part in missing)
    encode_parts(job, encoder, missing, processes if waiting >= min(LEAST_BYTES, 2 * part_bytes) else 1, advance)
    records = [finished(folder, job.key, part) for part in parts]
    if not all(records):
        raise OperatorError(f"a part in {folder} changed while its tokens were written", "resume the run")
    if not sum(record.documents for record in records if record is not None):
        raise OperatorError(f"{job.data} has no documents", "prepare the text from another source")
    if report is not None:
        report(total, total, "bytes")
    return [record for record in records if record is not None]


def _taken(folder: Path, key: str, part: Part, earlier: Sequence[Path]) -> bool:
    """Move a finished part of an earlier attempt here; False without one."""
    for place in (one / PARTS for one in earlier):
        if finished(place, key, part) is not None:
            for suffix in ("bin", "idx", "names", "json"):
                (place / f"{part.name}.{suffix}").replace(folder / f"{part.name}.{suffix}")
            return True
    return False


def _write(job: Job, encoder: Encoder, records: list[PartRecord], out: Path, shard_tokens: int | None) -> None:
    """Write the shards of all splits, their manifest and the tokenizer's files."""
    itemsize = int(job.dtype[-1])
    splits = {
        split: join_parts(
            Path(job.folder), [r for r in records if r.part.split == split], out, split, itemsize, shard_tokens
        )
        for split in SPLITS
    }
    tokenizer = Path(job.tokenizer)
    manifest = TokensManifest(
        format=FORMAT,
        dtype=dtype_for(encoder.vocab_size),
        eos_id=encoder.eos_id,
        vocab_size=encoder.vocab_size,
        tokenizer_file=encoder.file,
        tokenizer_sha256=file_sha256(tokenizer / encoder.file),
        tokenizer_files={name: file_sha256(tokenizer / name) for name in ID_FILES if (tokenizer / name).is_file()},
        splits=splits,
        sources=_by_source(job, records),
    )
    (out / TOKENS_JSON).write_bytes(msgspec.json.format(msgspec.json.encode(manifest)) + b"\n")
    vocabulary = dict(sorted(encoder.vocabulary().items(), key=lambda item: item[1]))
    # A line for each token; `indent` would do without the fast encoder.
    lines = json.dumps(vocabulary, ensure_ascii=False, separators=(",\n", ": "))
    (out / "vocab.json").write_text(f"{{\n{lines[1:-1]}\n}}\n", "utf-8")
    (out / TOKENIZER).mkdir()
    copy_tokenizer(out / TOKENIZER, tokenizer)
    for split in SPLITS:
        TokenShard(out, split)  # the stage fails here if lengths, dtype or document ends are wrong


def _by_source(job: Job, records: list[PartRecord]) -> dict[str, dict[str, dict[str, int]]]:
    """Tokens and documents of each source by split."""
    found = {name: {split: {"tokens": 0, "documents": 0} for split in SPLITS} for name in job.sources}
    for record in records:
        for name, (tokens, documents) in record.sources.items():
            own = found[name][record.part.split]
            own["tokens"] += tokens
            own["documents"] += documents
    return found
