"""Finds the operator's own `llama-quantize`, tests it on fixed numbers, runs it, and checks its file.

The search order is the recipe's `llama_cpp`, then COCKPIT_LLAMA_CPP, then the PATH. The version comes from the
program's output; the SHA-256 identifies the program.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.files import atomic_path, file_sha256, write_text
from engines.llama.ggml_types import TYPES
from engines.llama.gguf_file import BY_ID, read_gguf
from engines.llama.gguf_write import float32_value, text_value, uint32_value
from engines.llama.golden import check_golden
from engines.llama.library import NativeError
from exporters.gguf.file_writer import new_tensor, ready, write_file
from exporters.gguf.importance import Importance, save_importance
from exporters.gguf.quant_types import Choice, FilePlan, Shape, is_quantized_matrix
from exporters.process.foreign_program import ForeignProgramError, run_program
from recipes.file_types import FILE_TYPES
from recipes.problems import OperatorError, printable

PROGRAM = "llama-quantize"
VARIABLE = "COCKPIT_LLAMA_CPP"
_PLACES = ("", "build/bin", "bin")
_TEST_TENSOR = "blk.0.ffn_gate.weight"
_VERSIONS = (re.compile(r"^version: (.+)$", re.MULTILINE), re.compile(r"\bbuild = (\d+ \([0-9a-f]+\))"))

Progress = Callable[[float], None]


@dataclass(frozen=True)
class Found:
    """A program, and the setting that named it."""

    path: Path
    named_by: str


def find_program(configured: str | None) -> Found | None:
    """The operator's `llama-quantize`, or None.

    Args:
        configured: the recipe's `llama_cpp`: the program, its folder, or a checkout of llama.cpp with its build.

    Raises:
        OperatorError: a named place does not contain the program.
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
            f"name the program, or a folder with it, such as a built checkout with build/bin/{PROGRAM}",
        )
    found = shutil.which(PROGRAM)
    return Found(Path(found).absolute(), "PATH") if found else None


class OwnProgram:
    """The operator's `llama-quantize`.

    Attributes:
        record: its name, version, path and SHA-256, the setting that named it, and its self-tests, for parity.json.
    """

    def __init__(self, found: Found, work: Path, threads: int) -> None:
        """Run nothing yet. `work` is a folder for the program's inputs and output."""
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
        """Quantize fixed numbers to this type and compare the result with the recorded bytes.

        Raises:
            NativeError: the program failed, or wrote other bytes.
        """
        base = FILE_TYPES[file_type].common
        self.record["self_test"][base] = check_golden(_Rows(self, file_type), base)

    def run(
        self,
        source: Path,
        target: Path,
        file_type: str,
        imatrix: Path | None,
        expected: int,
        progress: Progress,
        types: Mapping[str, str] | None = None,
    ) -> None:
        """Quantize a file. `progress` gets the written share of `expected` bytes; `types` are the tensor types by name
        that replace those of the file type.

        Raises:
            NativeError: the program failed; the message has its last lines.
        """
        log = self._work / f"{PROGRAM}.log"
        matrix = ["--imatrix", str(imatrix)] if imatrix else []
        chosen = self._work / "tensor-types.txt"
        if types:
            write_text(chosen, "".join(f"^{re.escape(name)}$={kind}\n" for name, kind in types.items()))
            matrix += ["--tensor-type-file", str(chosen)]
        command = [str(self._path), *matrix, str(source), str(target), file_type, str(self._threads)]

        def look() -> None:
            size = target.stat().st_size if target.exists() else 0
            progress(min(0.999, size / expected))

        try:
            text = run_program(command, log, look)
        except ForeignProgramError as error:
            raise NativeError(f"{PROGRAM} {error}") from error
        found = next((match for pattern in _VERSIONS if (match := pattern.search(text))), None)
        self.record["version"] = printable(found.group(1), 200) if found else "unknown"
        progress(1.0)

    def quantize_rows(
        self, file_type: str, type_name: str, rows: NDArray[np.float32], importance: NDArray[np.float32] | None
    ) -> NDArray[np.uint8]:
        """Quantize rows as the test tensor of a small model.

        Args:
            file_type: the program's argument.
            type_name: the tensor type that it must choose.
            rows: float32 [rows, columns].
            importance: float32 [columns], or None.

        Returns:
            uint8 [rows, bytes of a row].

        Raises:
            NativeError: the program failed, or wrote another type.
        """
        source, target, imatrix = self._work / "test-F32.gguf", self._work / "test.gguf", None
        _write_test_model(source, rows)
        if importance is not None:
            imatrix = self._work / "test-imatrix.gguf"
            save_importance(Importance({_TEST_TENSOR: importance}, 1, (1, 1), "test"), imatrix)
        try:
            self.run(source, target, file_type, imatrix, 1, lambda _share: None)
            file = read_gguf(target)
            tensor = file.tensors.get(_TEST_TENSOR)
            if tensor is None or tensor.kind is None or tensor.kind.name != type_name:
                raise NativeError(f"self-test: {PROGRAM} did not write {type_name} for {file_type}")
            data = file.read(tensor, 0, tensor.rows)
        except OperatorError as error:
            raise NativeError(error.message) from error
        finally:
            target.unlink(missing_ok=True)
        return np.frombuffer(data, np.uint8).reshape(tensor.rows, -1)

    def write(
        self, source: Path, plan: FilePlan, path: Path, imatrix: Path | None, progress: Progress
    ) -> tuple[FilePlan, str]:
        """Write one file under a temporary name, check it, make it durable and rename it.

        Returns:
            The types in the file, and a warning if they differ from the plan's; empty if not.

        Raises:
            NativeError: the program failed, or its file does not have the plan's tensors.
        """
        with atomic_path(path) as partial:
            types = {choice.shape.name: choice.type for choice in plan.choices if is_quantized_matrix(choice.shape)}
            given = types if plan.tensor_types else None
            self.run(source, partial, plan.file_type, imatrix, plan.bytes, progress, given)
            made = read_plan(partial, plan)
        different = [c.shape.name for c, own in zip(plan.choices, made.choices, strict=True) if c.type != own.type]
        if not different:
            return made, ""
        first = printable(different[0], 200)
        return (
            made,
            f"{PROGRAM} gave {len(different)} tensors of {plan.file_type} another type than expected; the first is "
            f"{first}",
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
            raise NativeError(f"{PROGRAM}: {choice.shape.name} has the unknown type {tensor.type_id}")
        choices.append(Choice(choice.shape, BY_ID[tensor.type_id].name, choice.wanted))
    if len(file.tensors) != len(choices):
        raise NativeError(f"{PROGRAM}: {path.name} has {len(file.tensors)} tensors; the model has {len(choices)}")
    return replace(plan, choices=choices)


class _Rows:
    """Quantizes rows with the program, for the self-test."""

    def __init__(self, program: OwnProgram, file_type: str) -> None:
        self._program, self._file_type = program, file_type

    def quantize(
        self, type_name: str, rows: NDArray[np.float32], importance: NDArray[np.float32] | None = None
    ) -> NDArray[np.uint8]:
        """float32 [rows, columns] → uint8 [rows, bytes of a row]."""
        return self._program.quantize_rows(self._file_type, type_name, rows, importance)


def _write_test_model(path: Path, rows: NDArray[np.float32]) -> None:
    """Write a Llama with one layer and the given float32 [rows, columns], with only what quantizing needs."""
    count, width = rows.shape
    network = {
        "context_length": uint32_value(64),
        "embedding_length": uint32_value(width),
        "block_count": uint32_value(1),
        "feed_forward_length": uint32_value(count),
        "attention.head_count": uint32_value(2),
        "attention.head_count_kv": uint32_value(2),
        "attention.layer_norm_rms_epsilon": float32_value(1e-5),
        "rope.dimension_count": uint32_value(width // 2),
        "vocab_size": uint32_value(4),
    }
    keys = {
        "general.architecture": text_value("llama"),
        **{f"llama.{key}": value for key, value in network.items()},
        "general.file_type": uint32_value(FILE_TYPES["F32"].id),
    }
    ones = np.ones((4, width), np.float32)
    given = {"token_embd.weight": ones, "output.weight": ones, _TEST_TENSOR: rows}
    tensors = [
        (new_tensor(Shape(name, *values.shape), TYPES["F32"].id, values.nbytes), [ready(values, values.size)])
        for name, values in given.items()
    ]
    with path.open("wb") as file:
        write_file(file, keys, tensors)
