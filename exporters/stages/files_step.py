"""Writes the files of an export: chooses the quantizer and estimates the time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from engines.context import StageFailedError
from engines.llama.ggml_types import PLAIN_TYPES
from engines.llama.library import NativeError
from engines.llama.quantizer import Quantizer, open_quantizer
from engines.llama.rates import Work, measure_rates, rates_note
from exporters.gguf.importance import IMPORTANCE_FILE
from exporters.gguf.quant_types import FilePlan
from exporters.gguf.write import write_gguf
from exporters.quantize.own_quantize import PROGRAM, VARIABLE, OwnProgram, find_program
from exporters.stages.export_job import Export
from recipes.file_types import QUANTIZED
from recipes.problems import OperatorError


@dataclass
class Program:
    """The operator's tested `llama-quantize`, and its input: the model in a full-precision file."""

    program: OwnProgram
    source_plan: FilePlan
    source: Path


def own_program(export: Export) -> Program | None:
    """Find and test the operator's `llama-quantize`, unless the recipe names another quantizer.

    Raises:
        OperatorError: the recipe requires it, and it is missing or fails its self-test.
    """
    stage = export.ctx.stage
    types = [plan.file_type for plan in export.plans if plan.file_type in QUANTIZED]
    if not types or stage.quantizer not in ("auto", "llama-quantize"):
        return None
    found = find_program(stage.llama_cpp)
    if found is None:
        if stage.quantizer == "auto":
            return None
        raise OperatorError(
            f"quantizer — got llama-quantize, but it is not in llama_cpp, in {VARIABLE} or on the PATH",
            'set llama_cpp, or use quantizer = "auto"',
        )
    export.ctx.phase(f"testing {PROGRAM}")
    program = OwnProgram(found, export.ctx.work, export.threads)
    try:
        for file_type in types:
            program.test(file_type)
    except NativeError as error:
        if stage.quantizer == "auto":
            export.ctx.warn(f"your {PROGRAM} ({found.path}) is not used: {error}")
            return None
        raise OperatorError(f"quantizer — {found.path} cannot be used: {error}") from error
    return Program(program, export.model.plan(_exact_type(export)), export.ctx.work / "source.gguf")


def _exact_type(export: Export) -> str:
    """The smallest type that stores the model's weights exactly."""
    matrices = {info.dtype for info in export.model.weights.tensors.values() if len(info.shape) > 1}
    return "BF16" if matrices == {"BF16"} else "F32"


def write_files(export: Export, own: Program | None) -> None:
    """Write every file: the quantized ones with the operator's own program if there is one, else with kernels.

    Raises:
        OperatorError: no quantizer can write one of the types.
        StageFailedError: quantization failed.
        StopRequested: the operator asked to stop.
    """
    remaining = list(export.plans)
    try:
        if own is not None:
            remaining = _write_with_program(export, own)
        if remaining:
            _write_with_kernels(export, remaining)
    except NativeError as error:
        raise StageFailedError(f"quantization failed: {error}") from error
    finally:
        if own is not None:
            own.source.unlink(missing_ok=True)
    export.split()
    for plan in export.plans:
        prefix = plan.title.lower()
        export.metrics[f"{prefix}_bytes"] = float(export.bytes_of(plan))
        export.metrics[f"{prefix}_bits_per_weight"] = plan.bits_per_weight


def _write_with_program(export: Export, own: Program) -> list[FilePlan]:
    """Write the quantized files; return the remaining plans: the plain ones, the one for a size, whose errors were
    measured with kernels, and after a failure all unwritten ones."""
    ctx = export.ctx
    plans = [plan for plan in export.plans if plan.file_type in QUANTIZED and not plan.label]
    left = [plan for plan in export.plans if plan.file_type not in QUANTIZED or plan.label]
    total, done = float(own.source_plan.bytes + sum(plan.bytes for plan in plans)), 0.0
    ctx.phase(f"writing {own.source_plan.file_type} for {PROGRAM}")
    share = own.source_plan.bytes / sum(choice.shape.rows * choice.shape.columns for choice in own.source_plan.choices)

    def wrote(values: int) -> None:
        nonlocal done
        done += values * share
        ctx.progress(done, total, "bytes")

    write_gguf(export.model, own.source_plan, own.source, None, wrote)
    export.record["llama_quantize"] = own.program.record
    for index, plan in enumerate(plans):
        ctx.phase(f"writing {plan.title} with {PROGRAM}")
        matrix = ctx.out / IMPORTANCE_FILE if plan.weighted else None
        begun, size = float(own.source_plan.bytes + sum(p.bytes for p in plans[:index])), plan.bytes
        try:
            made, note = own.program.write(
                own.source,
                plan,
                export.path(plan),
                matrix,
                lambda part, begun=begun, size=size: ctx.progress(begun + part * size, total, "bytes"),  # type: ignore[misc]
            )
        except NativeError as error:
            if ctx.stage.quantizer != "auto":
                raise
            ctx.warn(f"your {PROGRAM} failed on {plan.title}; kernels write the remaining files: {error}")
            return left + plans[index:]
        if note:
            ctx.warn(note)
            export.plans[export.plans.index(plan)] = made
    return left


def _write_with_kernels(export: Export, plans: list[FilePlan]) -> None:
    ctx = export.ctx
    used = {choice.type for plan in plans for choice in plan.choices}
    blocks = used - set(PLAIN_TYPES)
    quantizer = _open_kernels(export, blocks) if blocks else None
    try:
        rates = _rates(export, quantizer, plans)
        work = Work([(c.type, c.shape.rows * c.shape.columns) for plan in plans for c in plan.choices], rates)
        for plan in plans:
            ctx.phase(f"writing {plan.title}")
            write_gguf(
                export.model,
                plan,
                export.path(plan),
                quantizer,
                lambda values: ctx.progress(work.advance(values), work.total_s, "seconds of work"),
                export.importance if plan.weighted else None,
            )
    finally:
        if quantizer is not None:
            quantizer.close()


def _open_kernels(export: Export, types: set[str]) -> Quantizer:
    ctx = export.ctx
    ctx.phase("testing kernels")
    try:
        quantizer, notes = open_quantizer(types, export.threads, ctx.stage.quantizer, ctx.stage.llama_cpp)
    except NativeError as error:
        raise OperatorError(
            f"file_types — {', '.join(sorted(types))} cannot be written on this machine: {error}",
            "install the export extra, or export F16 and BF16 only",
        ) from error
    export.record["quantizer"] = quantizer.record
    for note in notes:
        ctx.warn(note)
    return quantizer


def _rates(export: Export, quantizer: Quantizer | None, plans: list[FilePlan]) -> dict[str, float]:
    """Values per second of every type in use; types of weighted files are measured with an importance matrix."""
    export.ctx.phase("measuring kernels")
    rates: dict[str, float] = {}
    for weighted in (False, True):
        types = {c.type for plan in plans if plan.weighted == weighted for c in plan.choices}
        if quantizer is None:
            rates |= dict.fromkeys(types, 1e8)
        else:
            rates |= measure_rates(quantizer, sorted(types), export.threads, importance=weighted)
    if quantizer is not None:
        print(f"kernels: {rates_note(rates)}", flush=True)  # noqa: T201 - the stage's console.log
        export.record["rates"] = {name: round(rate) for name, rate in rates.items()}
    return rates
