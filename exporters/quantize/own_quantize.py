"""The operator's own `llama-quantize`: found, tested on fixed numbers, run, and its file looked at before it is taken.

It is looked for in the recipe's `llama_cpp`, then in COCKPIT_LLAMA_CPP, then on the PATH. Its version is what it prints when it
works; its SHA-256 says which program it was.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from engines.files import file_sha256, whole_path
from engines.llama.gguf_file import BY_ID, read_gguf
from engines.llama.golden import check_golden
from engines.llama.library import NativeError
from exporters.gguf.importance import Importance, save_importance
from exporters.gguf.quant_types import DEFAULT_TYPES, Choice, FilePlan
from recipes.problems import OperatorError, printable

PROGRAM = "llama-quantize"
VARIABLE = "COCKPIT_LLAMA_CPP"
_PLACES = ("", "build/bin", "bin")
_POLL_S = 0.1
_TEST_TENSOR = "blk.0.ffn_gate.weight"
_VERSIONS = (re.compile(r"^version: (.+)$", re.MULTILINE), re.compile(r"\bbuild = (\d+ \([0-9a-f]+\))"))
_ERROR_LINES = 6
_ROOT = str(Path(__file__).resolve().parents[2])

Progress = Callable[[float], None]


@dataclass(frozen=True)
class Found:
    """A program and where it was named."""

    path: Path
    named_by: str


def find_program(configured: str | None) -> Found | None:
    """The operator's `llama-quantize`, or None.

    Args:
        configured: the recipe's `llama_cpp`: the program, its folder, or a checkout of llama.cpp with its build.

    Raises:
        OperatorError: a place was named and it is not there.
    """
    for place, named_by in ((configured, "llama_cpp"), (os.environ.get(VARIABLE), VARIABLE)):
        if not place:
            continue
        given = Path(place).expanduser()
        for path in [given, *(given / part / PROGRAM for part in _PLACES)]:
            if path.is_file() and os.access(path, os.X_OK):
                return Found(path.absolute(), named_by)
        raise OperatorError(
            f"{named_by} — no {PROGRAM} in {printable(str(given), 400)}",
            f"name the program, or a folder that has it, as build/bin/{PROGRAM} in a checkout that was built",
        )
    found = shutil.which(PROGRAM)
    return Found(Path(found).absolute(), "PATH") if found else None


class OwnProgram:
    """A `llama-quantize` that works.

    Attributes:
        record: its name, version, path and SHA-256, who named it, and its self-tests, for parity.json.
    """

    def __init__(self, found: Found, work: Path, threads: int) -> None:
        """Nothing is run yet. `work` is a folder for its inputs and what it prints."""
        self._path, self._work, self._threads = found.path, work, threads
        self.record: dict[str, Any] = {
            "name": PROGRAM,
            "version": "",
            "path": str(found.path),
            "sha256": file_sha256(found.path),
            "named_by": found.named_by,
            "self_test": {},
        }

    def test(self, file_type: str) -> None:
        """Have it write fixed numbers in this type; they must be the recorded bytes.

        Raises:
            NativeError: it failed, or wrote something else.
        """
        passed = check_golden(_Rows(self, file_type), DEFAULT_TYPES[file_type])
        self.record["self_test"][DEFAULT_TYPES[file_type]] = passed

    def run(
        self, source: Path, target: Path, file_type: str, imatrix: Path | None, expected: int, progress: Progress
    ) -> None:
        """Quantize a file. `expected` bytes make `progress` a share of the work.

        Raises:
            NativeError: it ended with an error; with its last lines.
        """
        log = self._work / f"{PROGRAM}.log"
        matrix = ["--imatrix", str(imatrix)] if imatrix else []
        command = [str(self._path), *matrix, str(source), str(target), file_type, str(self._threads)]
        tether = [sys.executable, "-m", "engines.llama.tethered"]
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*tether, *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONPATH": os.pathsep.join([_ROOT, *_more_paths()])},
            )
        try:
            while process.poll() is None:
                size = target.stat().st_size if target.exists() else 0
                progress(min(0.999, size / expected))
                time.sleep(_POLL_S)
        finally:
            process.kill()
            process.wait()
        text = log.read_text(errors="replace")
        if process.returncode:
            lines = [line for line in text.strip().splitlines() if line.strip()][-_ERROR_LINES:]
            said = printable(" | ".join(lines), 600)
            raise NativeError(f"{PROGRAM} ended with status {process.returncode}: {said}")
        found = next((match for pattern in _VERSIONS if (match := pattern.search(text))), None)
        self.record["version"] = printable(found.group(1), 200) if found else "not told"
        progress(1.0)

    def write(
        self, source: Path, plan: FilePlan, path: Path, imatrix: Path | None, progress: Progress
    ) -> tuple[FilePlan, str]:
        """Write one file under a temporary name, look at it, make it durable and rename it.

        Returns:
            What is in the file, and a note when its tensors have other types than this product would give them.

        Raises:
            NativeError: it failed, or its file is not one with the plan's tensors.
        """
        with whole_path(path) as partial:
            self.run(source, partial, plan.file_type, imatrix, plan.bytes, progress)
            made = read_plan(partial, plan)
        different = [c.shape.name for c, own in zip(plan.choices, made.choices, strict=True) if c.type != own.type]
        if not different:
            return made, ""
        first = printable(different[0], 200)
        return (
            made,
            f"{PROGRAM} gave {len(different)} tensors of {plan.file_type} another type than expected, the first {first}",
        )


def read_plan(path: Path, plan: FilePlan) -> FilePlan:
    """The types that a file's tensors have, in the plan's order.

    Raises:
        NativeError: the file is damaged, or its tensors are not the plan's.
    """
    try:
        file = read_gguf(path)
    except OperatorError as error:
        raise NativeError(error.message) from error
    choices = []
    for choice in plan.choices:
        tensor = file.tensors.get(choice.shape.name)
        if tensor is None or (tensor.rows, tensor.columns) != (choice.shape.rows, choice.shape.columns):
            raise NativeError(f"{PROGRAM}: {choice.shape.name} is missing or has another shape in {path.name}")
        if tensor.type_id not in BY_ID:
            raise NativeError(f"{PROGRAM}: {choice.shape.name} has type {tensor.type_id}, which is not known here")
        choices.append(Choice(choice.shape, BY_ID[tensor.type_id].name, choice.wanted))
    if len(file.tensors) != len(choices):
        raise NativeError(f"{PROGRAM}: {path.name} has {len(file.tensors)} tensors; the model {len(choices)}")
    return FilePlan(plan.file_type, choices, weighted=plan.weighted)


class _Rows:
    """The program as something that quantizes rows: they travel as the one interesting tensor of a file."""

    def __init__(self, program: OwnProgram, file_type: str) -> None:
        self._program, self._file_type = program, file_type

    def quantize(
        self, type_name: str, rows: NDArray[np.float32], importance: NDArray[np.float32] | None = None
    ) -> NDArray[np.uint8]:
        """float32 [rows, columns] → uint8 [rows, bytes of a row]."""
        work = self._program._work
        source, target, imatrix = work / "test-F32.gguf", work / "test.gguf", None
        _write_test_model(source, rows)
        if importance is not None:
            imatrix = work / "test-imatrix.gguf"
            save_importance(Importance({_TEST_TENSOR: importance}, 1, (1, 1), "test"), imatrix)
        try:
            self._program.run(source, target, self._file_type, imatrix, 1, lambda _share: None)
            try:
                file = read_gguf(target)
            except OperatorError as error:
                raise NativeError(error.message) from error
            tensor = file.tensors.get(_TEST_TENSOR)
            if tensor is None or tensor.kind is None or tensor.kind.name != type_name:
                raise NativeError(f"self-test: {PROGRAM} did not write {type_name} for {self._file_type}")
            data = file.read(tensor, 0, tensor.rows)
        finally:
            target.unlink(missing_ok=True)
        return np.frombuffer(data, np.uint8).reshape(tensor.rows, -1)


def _more_paths() -> list[str]:
    return [path for path in [os.environ.get("PYTHONPATH")] if path]


def _write_test_model(path: Path, rows: NDArray[np.float32]) -> None:
    """A Llama of one layer, as far as quantizing looks at one."""
    count, width = rows.shape
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(width)
    writer.add_block_count(1)
    writer.add_feed_forward_length(count)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(width // 2)
    writer.add_vocab_size(4)
    writer.add_file_type(0)
    writer.add_tensor("token_embd.weight", np.ones((4, width), np.float32))
    writer.add_tensor("output.weight", np.ones((4, width), np.float32))
    writer.add_tensor(_TEST_TENSOR, rows)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
