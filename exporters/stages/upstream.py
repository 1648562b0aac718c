"""Exports through llama.cpp's own converter, for model families that Cockpit does not support.

The script writes one full-precision file, which is proven against the model through the gguf package's map of names.
Every quantized file is made from it with Cockpit's rules and kernels, or with the operator's `llama-quantize`, and is
proven against it byte for byte. Adapters are converted by llama.cpp's script, or merged into the model first.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engines.artifacts.generation_config import end_ids, read_generation_config
from engines.context import StageContext, StageFailedError
from engines.files import atomic_path
from engines.llama.gguf_file import BY_ID, read_gguf
from engines.llama.library import NativeError
from exporters.gguf.adapter import AdapterPlan, check_kinds
from exporters.gguf.importance import IMPORTANCE_FILE, load_importance
from exporters.gguf.own_types import with_tensor_types
from exporters.gguf.quant_types import Choice, FilePlan, Shape
from exporters.gguf.source import GgufSource, open_source
from exporters.gguf.vocab import Vocabulary
from exporters.gguf.write import Model
from exporters.hf_model.family import Architecture
from exporters.hf_model.model_folder import local_folder, open_weights, read_settings
from exporters.lora.adapter import Adapter, read_adapter
from exporters.lora.base_check import check_base
from exporters.lora.merge import merge
from exporters.process.foreign_program import ForeignProgramError
from exporters.process.room import check_disk, default_threads
from exporters.proof.audit import Proofs
from exporters.proof.byte_proof import ByteProver
from exporters.quantize.own_quantize import find_program
from exporters.quantize.quantize_file import Job, quantize
from exporters.stages.adapter_names import adapter_names, metric_key
from exporters.stages.export_job import AdapterFile, Export
from exporters.stages.importance_step import EXPERTS, Names, experts_of, measure_for
from exporters.stages.lineage import title_of
from exporters.stages.one_pass import OnePass, open_one_pass
from exporters.upstream.audit import prove_converted, prove_quantized
from exporters.upstream.names import sources_of
from exporters.upstream.script import ADAPTER_SCRIPT, SCRIPT, Converter, find_converter, options_for
from recipes.file_types import FILE_TYPES
from recipes.problems import OperatorError, printable
from recipes.stages.export import ExportStage

_FULL_PRECISION = ("F32", "F16", "BF16")
_MIXED = 1.2
"""A quantized file is about this multiple of its base type's size: some tensors get more bits."""


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


@dataclass
class _Work:
    """What the steps share: the export, the script, the model's folder, and the file that others are made from."""

    export: Export
    converter: Converter
    folder: Path
    exact: str
    exact_file: Path

    @property
    def ctx(self) -> StageContext[ExportStage]:
        return self.export.ctx


def export_upstream(ctx: StageContext[ExportStage], folder: Path) -> tuple[Export, dict[str, Proofs]]:
    """Write every file of the stage with the operator's llama.cpp, and prove each.

    Returns:
        The export after its files were written, and the proofs by file name.

    Raises:
        OperatorError: the script or the model cannot be used, a type cannot be written, or the disk is too small.
        StageFailedError: the script failed, or did not write a complete file.
        StopRequested: the operator asked to stop.
    """
    stage, converter = ctx.stage, find_converter(ctx.stage.llama_cpp)
    one_pass = open_one_pass(ctx)
    model = upstream_model(folder)
    exact = "BF16" if {info.dtype for info in model.weights.tensors.values()} <= {"BF16"} else "F32"
    types = list(dict.fromkeys(stage.file_types))
    _check_room(ctx, model, types, exact, merged=one_pass is not None)
    if one_pass is not None:
        _write_merged(one_pass)
        folder = one_pass.folder
        model = upstream_model(folder)
    model = replace(model, title=title_of(ctx, local_base(one_pass, folder), model.parameters))
    export = Export(ctx, model, [], stage.threads or default_threads(), one_pass=one_pass)
    export.record = {"format": 1, "threads": export.threads, "converter": converter.record()}
    exact_file = export.target(exact) if exact in types else ctx.work / export.title.file(exact)
    work = _Work(export, converter, folder, exact, exact_file)
    plain = [name for name in types if name in _FULL_PRECISION]
    quantized = [name for name in types if name not in plain]
    for name in plain:
        _convert(work, name, export.target(name))
    if quantized:
        if exact not in plain:
            _convert(work, exact, exact_file, planned=False)
        _quantize(work, quantized)
    _convert_adapters(export, converter)
    export.plans.sort(key=lambda plan: types.index(plan.file_type))
    export.split()
    for plan in export.plans:
        prefix = plan.file_type.lower()
        export.metrics[f"{prefix}_bytes"] = float(export.bytes_of(plan))
        export.metrics[f"{prefix}_bits_per_weight"] = plan.bits_per_weight
    proofs = _prove(work)
    if exact not in types:
        exact_file.unlink(missing_ok=True)
    return export, proofs


def local_base(one_pass: OnePass | None, folder: Path) -> Path:
    """The folder that names the model: that of the base model where an adapter is merged."""
    return folder if one_pass is None else one_pass.base


def _check_room(
    ctx: StageContext[ExportStage], model: Model, types: Sequence[str], exact: str, *, merged: bool
) -> None:
    def size(name: str) -> int:
        row = FILE_TYPES[name]
        return int(model.parameters * row.bits_per_weight * (_MIXED if row.quantized else 1)) // 8

    scratch = size(exact) if exact not in types else 0
    check_disk(ctx.out, files=sum(map(size, types)), scratch=scratch + (size(exact) if merged else 0))


def _write_merged(one_pass: OnePass) -> None:
    """Write the merged weights into the folder that has the merged model's config: the script reads files."""
    weights = one_pass.folder.with_name("merged-weights")
    weights.mkdir()
    merge(one_pass.base, [(one_pass.adapter, 1.0)], weights)
    for path in weights.glob("*.safetensors*"):
        path.rename(one_pass.folder / path.name)
    shutil.rmtree(weights)


def _convert(work: _Work, file_type: str, target: Path, *, planned: bool = True) -> None:
    """Let the script write one file; read it back, make it durable and rename it.

    Raises:
        StageFailedError: the script failed, or did not write a complete file.
    """
    ctx, expected = work.ctx, int(work.export.model.parameters * FILE_TYPES[file_type].bits_per_weight) // 8
    ctx.phase(f"writing {file_type} with {SCRIPT}")
    named = ctx.work / f"partial-{target.name}"  # the script requires a name that ends in .gguf
    try:
        with atomic_path(target, named) as partial:

            def look() -> None:
                ctx.progress(min(partial.stat().st_size if partial.exists() else 0, expected), expected, "bytes")

            options = options_for(work.export.model.architecture.name, work.export.model.weights.tensors)
            work.converter.convert(work.folder, options, file_type, partial, ctx.work / f"{SCRIPT}.log", look)
            plan = plan_of(partial, file_type)
    except ForeignProgramError as error:
        print(error.output, flush=True)  # noqa: T201 - the stage's console.log has all of it
        raise StageFailedError(f"{SCRIPT} {error}") from error
    except (NativeError, OperatorError) as error:
        raise StageFailedError(f"{SCRIPT} did not write a complete file: {error}") from error
    if planned:
        work.export.plans.append(plan)


def _quantize(work: _Work, types: list[str]) -> None:
    """Quantize the full-precision file, with an importance matrix where a type needs one."""
    export, stage, source = work.export, work.ctx.stage, open_source(work.exact_file)
    weighted = _types_to_weigh(source, types, stage)
    if weighted:
        export.importance = measure_for(export, _modules(source, export.model))
    for use, names in ((False, [t for t in types if t not in weighted]), (True, [t for t in types if t in weighted])):
        if not names:
            continue
        job = Job(
            work.exact_file,
            names,
            work.ctx.work,
            work.ctx.out / IMPORTANCE_FILE if use else None,
            export.threads,
            own_program=stage.quantizer in ("auto", "llama-quantize") and _has_program(stage.llama_cpp),
            llama_cpp=stage.llama_cpp,
            tensor_types=dict(stage.tensor_types),
        )
        try:
            record = quantize(job, lambda line: _pass_on(work.ctx, line))
        except NativeError as error:
            raise StageFailedError(f"quantization failed: {error}") from error
        export.record |= {key: record[key] for key in ("quantizer", "llama_quantize") if key in record}
        for name in names:
            job.target(name).rename(export.target(name))
            export.plans.append(replace(plan_of(export.target(name), name), weighted=use))


def _types_to_weigh(source: GgufSource, types: Sequence[str], stage: ExportStage) -> set[str]:
    if stage.imatrix == "always":
        return {name for name in types if FILE_TYPES[name].importance != "ignored"}
    return {name for name in types if with_tensor_types(source.plan(name), stage.tensor_types).needs_importance}


def _modules(source: GgufSource, model: Model) -> Names:
    """The modules of transformers whose inputs weigh the columns of the file's matrices."""
    names = sources_of(source.family, source.layers, model.weights.tensors)
    layers, experts = {}, {}
    for shape in source.shapes:
        found = names.get(shape.name, ())
        if shape.layer is None or shape.dimensions < 2 or not found:
            continue
        if EXPERTS in found[0]:
            experts[shape.name] = experts_of(found[0])
        elif found[0].endswith(".weight"):
            layers[shape.name] = found[0].removesuffix(".weight")
    return Names(layers, experts)


def _has_program(configured: str | None) -> bool:
    """Whether there is a `llama-quantize`; a checkout that was not built has none."""
    try:
        return find_program(configured) is not None
    except OperatorError:
        return False


def _pass_on(ctx: StageContext[ExportStage], line: dict[str, Any]) -> None:
    match line:
        case {"phase": str(phase)}:
            ctx.phase(phase)
        case {"progress": {"share": float(share)}}:
            ctx.progress(share, 1.0, "files")
        case {"warning": str(text)}:
            ctx.warn(text)


def _convert_adapters(export: Export, converter: Converter) -> None:
    """Convert every adapter of the stage; `export.adapters` gets them.

    Raises:
        OperatorError: an adapter belongs to another base model, or the script cannot express it.
        StageFailedError: the script failed, or did not write a complete file.
    """
    ctx = export.ctx
    inputs = [ctx.inputs[name] for name in ctx.inputs if name.startswith("adapters[")]
    found = [(given, local_folder(given)) for given in inputs]
    for (given, folder), name in zip(found, adapter_names(found), strict=True):
        for warning in check_base(export.model.folder, ctx.inputs["model"].manifest_sha256, folder, beside=name):
            ctx.warn(warning)
        adapter = read_adapter(folder)
        _check_adapter(adapter)
        ctx.phase(f"writing {name} with {ADAPTER_SCRIPT}")
        path = export.adapter_path(name, ctx.stage.adapter_type)
        _convert_adapter(export, converter, folder, path)
        tensors = read_gguf(path).tensors
        if len(tensors) != 2 * len(adapter.changes):
            raise StageFailedError(
                f"{ADAPTER_SCRIPT} wrote {len(tensors)} matrices of {name}; the adapter has {2 * len(adapter.changes)}"
            )
        values = sum(tensor.rows * tensor.columns for tensor in tensors.values())
        plan = AdapterPlan(adapter.changes, float(adapter.config["lora_alpha"]), values)
        size = path.stat().st_size
        export.adapters.append(AdapterFile(name, folder, given.manifest_sha256, plan, path, size))
        export.metrics[f"{metric_key(name)}_bytes"] = float(size)


def _check_adapter(adapter: Adapter) -> None:
    """Refuse what llama.cpp's script drops or scales differently."""
    check_kinds(adapter)
    alpha = float(adapter.config["lora_alpha"])
    for change in adapter.changes.values():
        assert change.a is not None
        if change.scale != alpha / change.a.shape[0]:
            raise OperatorError(
                f"{adapter.folder}: {printable(change.module, 200)} has a scale of its own (rank pattern, alpha "
                f"pattern or rsLoRA), which {ADAPTER_SCRIPT} does not convert",
                "merge the adapter into its base model instead: set adapter",
            )


def _convert_adapter(export: Export, converter: Converter, folder: Path, path: Path) -> None:
    ctx = export.ctx
    try:
        with atomic_path(path, ctx.work / f"partial-{path.name}") as partial:
            log = ctx.work / f"{ADAPTER_SCRIPT}.log"
            converter.convert_adapter(
                export.model.folder, folder, ctx.stage.adapter_type, partial, log, lambda: ctx.progress(0, 1, "files")
            )
            read_gguf(partial)
    except ForeignProgramError as error:
        print(error.output, flush=True)  # noqa: T201 - the stage's console.log has all of it
        raise StageFailedError(f"{ADAPTER_SCRIPT} {error}") from error
    except OperatorError as error:
        raise StageFailedError(f"{ADAPTER_SCRIPT} did not write a complete file: {error}") from error


def _prove(work: _Work) -> dict[str, Proofs]:
    """Prove the full-precision files against the model, and the quantized ones against the file they were made from."""
    export, ctx = work.export, work.ctx
    found: dict[str, Proofs] = {}
    matrix = ctx.out / IMPORTANCE_FILE
    weights, config = export.model.weights, export.model.config

    def advance(_values: int) -> None:
        ctx.progress(len(found), len(export.plans), "files")

    with _prover(export) as prover:
        made_from = None
        if work.exact_file.is_file():
            ctx.phase(f"proving the bytes of {work.exact}")
            made_from = prove_converted(work.exact_file, work.folder, config, weights, prover, advance)
        for plan in export.plans:
            ctx.phase(f"proving the bytes of {plan.file_type}")
            path = export.path(plan)
            if path == work.exact_file and made_from is not None:
                proofs = made_from
            elif FILE_TYPES[plan.file_type].quantized:
                values = load_importance(matrix).values if plan.weighted else None
                proofs = prove_quantized(path, work.exact_file, work.folder, config, prover, values, advance)
                proofs.bytes.findings += made_from.bytes.findings if made_from is not None else []
                proofs.bytes.notes += made_from.bytes.notes if made_from is not None else []
            else:
                proofs = prove_converted(path, work.folder, config, weights, prover, advance)
            found[path.name] = proofs
            export.metrics[f"{plan.file_type.lower()}_bytes_proof_s"] = proofs.bytes.seconds
            for note in proofs.bytes.notes:
                ctx.warn(f"{plan.file_type}: {note}")
    return found


@contextmanager
def _prover(export: Export) -> Iterator[ByteProver]:
    stage = export.ctx.stage
    same = "llama_quantize" not in export.record and stage.quantizer != "numpy"
    with ByteProver(export.threads, rows=stage.byte_proof, same_kernels=same, llama_cpp=stage.llama_cpp) as prover:
        yield prover


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
