"""Runs llama.cpp's own converter from the operator's checkout, for model families that Cockpit does not support.

The script runs in its own process. Its file is read back before it is renamed, and is compared with the model like
every other file. It is not audited, because the audit has only tables of Cockpit's own families.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engines.artifacts.generation_config import end_ids, read_generation_config
from engines.context import StageContext, StageFailedError
from engines.files import atomic_path, file_sha256, read_regular_text
from engines.llama.gguf_file import BY_ID, read_gguf
from engines.llama.library import NativeError
from exporters.gguf.quant_types import Choice, FilePlan, Shape
from exporters.gguf.vocab import Vocabulary
from exporters.gguf.write import Model
from exporters.hf_model.architectures import known_architecture
from exporters.hf_model.family import Architecture
from exporters.hf_model.model_folder import open_weights, read_settings
from exporters.process.foreign_program import ForeignProgramError, run_program
from exporters.process.room import check_disk, default_threads
from exporters.quantize.own_quantize import PROGRAM, VARIABLE, Found, OwnProgram, find_program
from exporters.quantize.quantize_file import Job, quantize
from exporters.stages.export_job import Export
from exporters.stages.lineage import title_of
from recipes.file_types import FILE_TYPES
from recipes.problems import OperatorError, printable
from recipes.stages.export import ExportStage

SCRIPT = "convert_hf_to_gguf.py"
PYTHON_VARIABLE = "COCKPIT_LLAMA_CPP_PYTHON"
_BY_SCRIPT = ("F32", "F16", "BF16", "Q8_0")
"""Types that the script itself writes."""
_QUANTIZED_BITS = 7
"""Estimated bits per weight of a file of any other type: its tensor types depend on the family."""
_HASH = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Converter:
    """A checkout's script, and the interpreter that runs it."""

    script: Path
    python: str

    def record(self) -> dict[str, Any]:
        """Facts about the converter, for parity.json."""
        return {
            "name": SCRIPT,
            "path": str(self.script),
            "sha256": file_sha256(self.script),
            "commit": _commit(self.script.parent),
        }


def find_converter(configured: str | None) -> Converter:
    """Find the script in the operator's checkout.

    Args:
        configured: the recipe's `llama_cpp`.

    Raises:
        OperatorError: no checkout is named, or it lacks the script.
    """
    named_by, place = ("llama_cpp", configured) if configured else (VARIABLE, os.environ.get(VARIABLE))
    if not place:
        raise OperatorError(
            'converter — got "upstream", which needs a checkout of llama.cpp; neither llama_cpp nor '
            f"{VARIABLE} names one",
            'set llama_cpp = "DIR"',
        )
    script = Path(place).expanduser() / SCRIPT
    if not script.is_file():
        raise OperatorError(
            f"{named_by} — no {SCRIPT} in {printable(str(script.parent), 400)}", "name a checkout of llama.cpp"
        )
    python = os.environ.get(PYTHON_VARIABLE) or sys.executable
    if shutil.which(python) is None:
        raise OperatorError(f"{PYTHON_VARIABLE} — program not found: {printable(python, 300)}")
    return Converter(script.absolute(), python)


def upstream_model(folder: Path) -> Model:
    """The parts of a model that the comparison needs, for any family.

    Raises:
        OperatorError: its config lacks the number of tokens or positions, or its weights cannot be read.
    """
    config = read_settings(folder)
    for key in ("vocab_size", "max_position_embeddings"):
        if not isinstance(config.get(key), int):
            raise OperatorError(
                f"{folder}/config.json: {key} — got {printable(str(config.get(key)), 60)}; allowed a whole number",
                "only models of text are supported",
            )
    weights = open_weights(folder)
    shapes = [Shape(info.name, info.rows, info.columns, len(info.shape)) for info in weights.tensors.values()]
    name = str((config.get("architectures") or ["unknown"])[0])
    vocabulary = Vocabulary(
        "unknown", "unknown", [], [], ends=end_ids(read_generation_config(folder)) or end_ids(config)
    )
    return Model(folder, config, Architecture(printable(name, 60), (), ()), weights, vocabulary, {}, shapes)


def export_upstream(ctx: StageContext[ExportStage], folder: Path) -> Export:
    """Write every file of the stage with the operator's llama.cpp.

    Returns:
        The export after its files were written.

    Raises:
        OperatorError: the checkout or the model cannot be used, a type cannot be written, or the disk is too small.
        StageFailedError: the script failed, or did not write a complete file.
        StopRequested: the operator asked to stop.
    """
    stage = ctx.stage
    converter, model = find_converter(stage.llama_cpp), upstream_model(folder)
    model = replace(model, title=title_of(ctx, folder, model.parameters))
    types = list(dict.fromkeys(stage.file_types))
    export = Export(ctx, model, [], stage.threads or default_threads())
    export.record = {"format": 1, "threads": export.threads, "converter": converter.record(), "audit": None}
    ctx.warn(
        "llama.cpp's own converter writes these files: they are compared with the model, but not audited key by key"
    )
    known = known_architecture(model.config) is not None
    program = None if known else _program(stage.llama_cpp)
    by_script = [
        name for name in types if name in _BY_SCRIPT and (not FILE_TYPES[name].quantized or not (known or program))
    ]
    others = [name for name in types if name not in by_script]
    if others and not (known or program):
        raise OperatorError(
            f"file_types — got {', '.join(others)}; Cockpit does not know the tensor types of "
            f"{model.architecture.name} in them",
            f"build {PROGRAM} in the checkout that llama_cpp names, or export {', '.join(_BY_SCRIPT)} only",
        )
    exact = "BF16" if {info.dtype for info in model.weights.tensors.values()} <= {"BF16"} else "F32"
    bits = {name: FILE_TYPES[name].bits_per_weight for name in _BY_SCRIPT}
    sizes = {name: int(model.parameters * bits.get(name, _QUANTIZED_BITS)) // 8 for name in {*types, exact}}
    check_disk(ctx.out, files=sum(sizes[name] for name in types), scratch=sizes[exact] if others else 0)
    for name in by_script:
        ctx.phase(f"writing {name} with {SCRIPT}")
        export.plans.append(_convert(ctx, converter, folder, name, export.target(name), sizes[name]))
    if others:
        source = ctx.work / export.title.file(exact)
        ctx.phase(f"writing {exact} with {SCRIPT}")
        _convert(ctx, converter, folder, exact, source, sizes[exact])
        export.plans += (
            _quantize_with(export, program, source, others) if program else _quantize_here(export, source, others)
        )
        source.unlink()
    export.plans.sort(key=lambda plan: types.index(plan.file_type))
    export.split()
    for plan in export.plans:
        prefix = plan.file_type.lower()
        export.metrics[f"{prefix}_bytes"] = float(export.bytes_of(plan))
        export.metrics[f"{prefix}_bits_per_weight"] = plan.bits_per_weight
    return export


def _convert(
    ctx: StageContext[ExportStage], converter: Converter, folder: Path, name: str, target: Path, expected: int
) -> FilePlan:
    """Run the script for one type."""
    log = ctx.work / f"{SCRIPT}.log"

    def write(partial: Path) -> None:
        python = shutil.which(converter.python) or converter.python
        command = [python, str(converter.script), str(folder), "--outtype", name.lower(), "--outfile", str(partial)]
        try:
            run_program(command, log, lambda: _progress(ctx, partial, expected), {"HF_HUB_OFFLINE": "1"})
        except ForeignProgramError as error:
            print(error.output, flush=True)  # noqa: T201 - the stage's console.log has all of it
            raise StageFailedError(f"{SCRIPT} {error}") from error

    return _read_back(ctx, target, name, SCRIPT, write)


def _read_back(
    ctx: StageContext[ExportStage], target: Path, file_type: str, program: str, write: Callable[[Path], None]
) -> FilePlan:
    """Let a foreign program write a file; read it back, make it durable and rename it.

    Raises:
        StageFailedError: the program failed, or did not write a complete file.
    """
    named = ctx.work / f"partial-{target.name}"  # llama.cpp's script requires a name that ends in .gguf
    try:
        with atomic_path(target, named) as partial:
            write(partial)
            return plan_of(partial, file_type)
    except (NativeError, OperatorError) as error:
        raise StageFailedError(f"{program} did not write a complete file: {error}") from error


def _progress(ctx: StageContext[ExportStage], path: Path, expected: int) -> None:
    ctx.progress(min(path.stat().st_size if path.exists() else 0, expected), expected, "bytes")


def _program(configured: str | None) -> Found | None:
    """The operator's `llama-quantize`; None for a checkout that was not built."""
    try:
        return find_program(configured)
    except OperatorError:
        return None


def _quantize_with(export: Export, found: Found, source: Path, types: list[str]) -> list[FilePlan]:
    """Quantize with the operator's program, which has the family's table of types."""
    ctx = export.ctx
    program = OwnProgram(found, ctx.work, export.threads)
    export.record["llama_quantize"] = program.record
    plans = []
    for name in types:
        ctx.phase(f"writing {name} with {PROGRAM}")
        size = source.stat().st_size // 3

        def write(partial: Path, name: str = name, size: int = size) -> None:
            program.test(name)
            program.run(source, partial, name, None, size, lambda share: ctx.progress(share, 1, "files"))

        plans.append(_read_back(ctx, export.target(name), name, PROGRAM, write))
    return plans


def _quantize_here(export: Export, source: Path, types: list[str]) -> list[FilePlan]:
    """Quantize with Cockpit's tables and kernels, for a family that Cockpit supports."""
    ctx = export.ctx

    def send(line: dict[str, Any]) -> None:
        match line:
            case {"phase": str(phase)}:
                ctx.phase(phase)
            case {"progress": {"share": float(share)}}:
                ctx.progress(share, 1.0, "files")
            case {"warning": str(text)}:
                ctx.warn(text)

    job = Job(source, types, ctx.work, None, export.threads, own_program=_program(None) is not None)
    try:
        record = quantize(job, send)
    except NativeError as error:
        raise StageFailedError(f"quantization failed: {error}") from error
    export.record |= {key: record[key] for key in ("quantizer", "llama_quantize") if key in record}
    plans = []
    for name in types:
        target = export.target(name)
        job.target(name).rename(target)
        plans.append(plan_of(target, name))
    return plans


def plan_of(path: Path, file_type: str) -> FilePlan:
    """The tensors of a finished file with their types.

    Raises:
        OperatorError: the file is not a complete GGUF file, or has an unknown type.
    """
    choices = []
    for tensor in read_gguf(path).tensors.values():
        if tensor.type_id not in BY_ID:
            raise OperatorError(f"{path}: {printable(tensor.name, 200)} has the unknown type {tensor.type_id}")
        kind = BY_ID[tensor.type_id].name
        choices.append(Choice(Shape(tensor.name, tensor.rows, tensor.columns, 2 if tensor.matrix else 1), kind, kind))
    return FilePlan(file_type, choices)


def _commit(checkout: Path) -> str | None:
    """The checkout's commit, read from its files, because git would run programs that its configuration names."""
    git = checkout / ".git"
    try:
        head = read_regular_text(git / "HEAD").strip()
        if head.startswith("ref: "):
            name = head.removeprefix("ref: ")
            loose = git / name
            if loose.is_file() and ".." not in name:
                head = read_regular_text(loose).strip()
            else:
                packed = read_regular_text(git / "packed-refs").splitlines()
                head = next((line.split()[0] for line in packed if line.endswith(f" {name}")), "")
    except (OSError, UnicodeDecodeError):
        return None
    return head if _HASH.fullmatch(head) else None
