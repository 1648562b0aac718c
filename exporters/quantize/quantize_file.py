"""`python -m exporters.quantize.quantize_file JOB`: quantizes one full-precision GGUF file to several types, for
`cockpit quantize`.

JOB is JSON: `{"source", "types", "out", "imatrix", "threads", "tensor_types"}`. Each line of the output is one JSON
object: `phase`, `note`, `warning`, `progress` (with the remaining seconds), `file` (a finished one), or, at the end,
`error` with its `hint`.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engines.files import atomic_path, file_sha256, write_json
from engines.llama.ggml_types import PLAIN_TYPES
from engines.llama.gguf_file import read_gguf
from engines.llama.job_lines import Send, run_job
from engines.llama.library import NativeError
from engines.llama.quantizer import Quantizer, open_quantizer
from engines.llama.rates import Work, measure_rates, rates_note
from engines.words import ExitCode
from exporters.gguf.file_names import without_shard
from exporters.gguf.importance import Importance, load_importance
from exporters.gguf.own_types import OPTION, check_tensor_types, checked_tensor_types, with_tensor_types
from exporters.gguf.quant_types import FilePlan
from exporters.gguf.source import GgufSource, open_source, write_quantized
from exporters.process.room import default_threads
from exporters.quantize.own_quantize import PROGRAM, OwnProgram, find_program
from exporters.ternary.check import check_ternary_rows
from recipes import quantities
from recipes.file_types import FILE_TYPES, QUANTIZED, file_type_name
from recipes.problems import OperatorError, printable

PROGRESS_S = 0.2
SPARE_BYTES = 32 * 1024 * 1024
_FULL_PRECISION = re.compile(r"[-.](f32|f16|bf16)$", re.IGNORECASE)


@dataclass(frozen=True)
class Job:
    """What to quantize.

    `own_program`: use the operator's `llama-quantize` if there is one. `force`: replace files. `llama_cpp`: the folder
    of the operator's llama.cpp; by default COCKPIT_LLAMA_CPP.
    """

    source: Path
    types: list[str]
    out: Path
    imatrix: Path | None
    threads: int
    own_program: bool = True
    force: bool = False
    tensor_types: dict[str, str] = field(default_factory=dict)
    llama_cpp: str | None = None

    @property
    def _stem(self) -> str:
        return _FULL_PRECISION.sub("", without_shard(self.source.stem))

    def report(self) -> Path:
        """The name of the record beside the files; without `force`, the first that no file has."""
        names = (self.out / f"{self._stem}.quantize{'' if n == 1 else f'-{n}'}.json" for n in itertools.count(1))
        return next(path for path in names if self.force or not os.path.lexists(path))

    def target(self, file_type: str) -> Path:
        """The file's final name: the source's name with the type replaced."""
        return self.out / f"{self._stem}-{file_type}.gguf"


def quantize(job: Job, send: Send) -> dict[str, Any]:
    """Write one file of every type, after all checks.

    Returns:
        The record, which is also written beside the files.

    Raises:
        OperatorError: the source, a type or the importance matrix cannot be used, or the disk is too small.
        NativeError: no kernels pass their self-test, or the kernels failed.
    """
    _refuse_existing(job)
    send({"phase": "reading"})
    source = open_source(job.source)
    importance = load_importance(job.imatrix) if job.imatrix else None
    check_tensor_types(source.shapes, job.tensor_types, OPTION)
    plans = [
        with_tensor_types(source.plan(name, importance=importance is not None), job.tensor_types) for name in job.types
    ]
    _check(job, source, plans, importance)
    for plan in plans:
        if plan.fallback_note():
            send({"warning": plan.fallback_note()})
    record = _new_record(job)
    left = _write_with_program(job, plans, record, send)
    if left:
        _write_with_kernels(job, source, left, importance, record, send)
    write_json(job.report(), record)
    return record


def _refuse_existing(job: Job) -> None:
    """Refuse to replace files, and to quantize a file into itself.

    Raises:
        OperatorError: some exist; all are named.
    """
    targets = [job.target(name) for name in job.types]
    there = [path for path in targets if os.path.lexists(path)]
    if any(path.exists() and path.samefile(job.source) for path in there):
        raise OperatorError(f"{job.source} would be replaced by its own quantization", "choose another --out")
    if there and not job.force:
        raise OperatorError(
            "\n".join(f"--types — {printable(str(path), 400)} exists" for path in there),
            "choose other types or another --out, or replace the files: --force",
        )


def _new_record(job: Job) -> dict[str, Any]:
    return {
        "format": 1,
        "source": {"file": job.source.name, "bytes": job.source.stat().st_size, "sha256": file_sha256(job.source)},
        "importance_matrix": {"file": job.imatrix.name, "sha256": file_sha256(job.imatrix)} if job.imatrix else None,
        "threads": job.threads,
        "files": [],
    }


def _write_with_program(job: Job, plans: list[FilePlan], record: dict[str, Any], send: Send) -> list[FilePlan]:
    """Write files with the operator's `llama-quantize` if it exists and passes its self-test; return the plans that
    remain."""
    found = find_program(job.llama_cpp) if job.own_program else None
    if found is None:
        return plans
    send({"phase": f"testing {PROGRAM}"})
    total = sum(plan.bytes for plan in plans)
    with tempfile.TemporaryDirectory() as work:
        program = OwnProgram(found, Path(work), job.threads)
        index = 0
        try:
            for plan in plans:
                program.test(plan.file_type)
            for index, plan in enumerate(plans):
                send({"phase": f"writing {plan.file_type} with {PROGRAM}", "bytes": plan.bytes, "estimated_s": None})
                began, done = time.perf_counter(), sum(plan.bytes for plan in plans[:index])
                meter = _ByteMeter(done, plan.bytes, total, send)
                made, note = program.write(job.source, plan, job.target(plan.file_type), job.imatrix, meter.advance)
                if note:
                    send({"warning": note})
                _send_file(job, made, time.perf_counter() - began, record, send)
        except NativeError as error:
            send(
                {"warning": f"your {PROGRAM} ({found.path}) failed; writing the remaining files with kernels: {error}"}
            )
            return plans[index:]
        finally:
            if record["files"]:
                record["llama_quantize"] = program.record
    return []


def _write_with_kernels(
    job: Job,
    source: GgufSource,
    plans: list[FilePlan],
    importance: Importance | None,
    record: dict[str, Any],
    send: Send,
) -> None:
    needed = {choice.type for plan in plans for choice in plan.choices}
    send({"phase": "testing kernels"})
    quantizer, notes = open_quantizer(needed - set(PLAIN_TYPES), job.threads, llama_cpp=job.llama_cpp)
    try:
        for note in notes:
            send({"warning": note})
        record["quantizer"] = quantizer.record
        send({"phase": "measuring"})
        rates = measure_rates(quantizer, sorted(needed), job.threads, importance=importance is not None)
        send({"note": rates_note(rates)})
        _write_all(job, source, plans, quantizer, rates, importance, record, send)
    finally:
        quantizer.close()


def _check(job: Job, source: GgufSource, plans: list[FilePlan], importance: Importance | None) -> None:
    for plan in plans:
        missing = [c for c in plan.needs_importance if importance is None or c.shape.name not in importance.values]
        if missing:
            raise OperatorError(
                f"--types — {plan.file_type} needs an importance matrix"
                + (f", and the given one has no values for {missing[0].shape.name}" if importance else ""),
                "give one with --imatrix FILE; `cockpit export` computes one from held-out text",
            )
        if FILE_TYPES[plan.file_type].ternary:
            check_ternary_rows(source.shapes, source.rows_of, f"--types — {plan.file_type}")
    need, have = sum(plan.bytes for plan in plans) + SPARE_BYTES, shutil.disk_usage(job.out).free
    if need > have:
        raise OperatorError(
            f"the files need {quantities.size(need)} of disk; {job.out} has {quantities.size(have)} free",
            "free space, choose fewer types, or another --out",
        )


def _write_all(
    job: Job,
    source: GgufSource,
    plans: list[FilePlan],
    quantizer: Quantizer,
    rates: dict[str, float],
    importance: Importance | None,
    record: dict[str, Any],
    send: Send,
) -> None:
    parts = [(choice.type, choice.shape.rows * choice.shape.columns) for plan in plans for choice in plan.choices]
    meter = _Meter(Work(parts, rates), send)
    for plan in plans:
        seconds = Work([(c.type, c.shape.rows * c.shape.columns) for c in plan.choices], rates).total_s
        send({"phase": f"writing {plan.file_type}", "bytes": plan.bytes, "estimated_s": seconds})
        began = time.perf_counter()
        with atomic_path(job.target(plan.file_type)) as partial:
            name = job.imatrix.name if job.imatrix else ""
            with partial.open("wb") as file:
                write_quantized(source, plan, file, quantizer, meter.advance, importance, name)
            read_gguf(partial)
        _send_file(job, plan, time.perf_counter() - began, record, send)


def _send_file(job: Job, plan: FilePlan, seconds: float, record: dict[str, Any], send: Send) -> None:
    path = job.target(plan.file_type)
    made = {
        "file": path.name,
        "file_type": plan.file_type,
        "bytes": path.stat().st_size,
        "sha256": file_sha256(path),
        "bits_per_weight": plan.bits_per_weight,
        "tensor_types": dict(plan.tensor_types),
        "seconds": seconds,
        "fallbacks": {choice.shape.name: [choice.wanted, choice.type] for choice in plan.fallbacks},
    }
    record["files"].append(made)
    send({"file": made})


class _ByteMeter:
    """Progress of a foreign program, from the size of its file."""

    def __init__(self, done: int, size: int, total: int, send: Send) -> None:
        self._done, self._size, self._total, self._send = done, size, total, send
        self._began = time.monotonic()

    def advance(self, part: float) -> None:
        written = part * self._size
        left = (self._total - self._done - written) * (time.monotonic() - self._began) / written if written else None
        self._send({"progress": {"share": (self._done + written) / self._total, "left_s": left}})


class _Meter:
    """Progress from the measured rates; the remaining time is corrected by the actual speed."""

    def __init__(self, work: Work, send: Send) -> None:
        self._work, self._send = work, send
        self._began, self._due = time.monotonic(), 0.0

    def advance(self, values: int) -> None:
        done, now = self._work.advance(values), time.monotonic()
        if now < self._due and done < self._work.total_s:
            return
        self._due = now + PROGRESS_S
        left = (self._work.total_s - done) * ((now - self._began) / done if done else 1.0)
        self._send({"progress": {"share": done / self._work.total_s, "left_s": left}})


def read_job(text: str) -> Job:
    """A job from JSON.

    Raises:
        OperatorError: a type is unknown, or the output folder cannot be created.
    """
    given = json.loads(text)
    types = list(dict.fromkeys(str(file_type_name(name)) for name in given["types"]))
    wrong = [name for name in types if name not in QUANTIZED]
    if wrong or not types:
        raise OperatorError(
            f"--types — got {printable(str(wrong[0])) if wrong else 'none'}; allowed {', '.join(QUANTIZED)}"
        )
    out = Path(given["out"])
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OperatorError(f"--out — could not create {out}: {error.strerror}") from error
    imatrix = Path(given["imatrix"]) if given.get("imatrix") else None
    return Job(
        Path(given["source"]),
        types,
        out,
        imatrix,
        int(given.get("threads") or default_threads()),
        force=bool(given.get("force")),
        tensor_types=checked_tensor_types(given.get("tensor_types") or {}),
    )


def _work(description: str, send: Send) -> ExitCode:
    quantize(read_job(description), send)
    return ExitCode.DONE


if __name__ == "__main__":
    sys.exit(run_job(sys.argv, _work))
