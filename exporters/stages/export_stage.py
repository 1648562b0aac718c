"""The export stage: converts a model folder to GGUF files, and proves that each is the model."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from engines.context import Artifact, StageContext, StageFailedError, StageResult
from engines.files import file_sha256, write_json
from engines.run_dir.paths import FIXTURE_FILE
from exporters.budget.measure import matrices
from exporters.budget.plan import check_target
from exporters.gguf.importance import IMPORTANCE_FILE
from exporters.gguf.own_types import check_tensor_types, with_tensor_types
from exporters.gguf.quant_types import FilePlan
from exporters.gguf.write import Model, read_model
from exporters.hf_model.model_folder import local_folder
from exporters.lora.base_check import quantization_of_base
from exporters.lora.trained_model import TrainedModel, trained_before_merge, trained_with
from exporters.process.room import check_disk, check_memory, default_threads
from exporters.proof.audit import Proofs
from exporters.reference.needed_memory import reference_bytes
from exporters.stages.budget_step import plan_target
from exporters.stages.card import write_export_card
from exporters.stages.compare_step import compare_files, describe_file, write_fixture
from exporters.stages.export_adapters import plan_adapters, write_adapters
from exporters.stages.export_job import Export
from exporters.stages.files_step import own_program, write_files
from exporters.stages.i2s_step import plan_i2s, write_i2s_file
from exporters.stages.importance_step import importance_request, measure_for, types_to_weigh
from exporters.stages.lineage import title_of
from exporters.stages.one_pass import open_one_pass
from exporters.stages.proof_step import prove_files
from exporters.stages.refused_files import all_reasons, set_aside
from exporters.stages.serving_files import MODELFILE, served, write_serving_files
from exporters.stages.tokenizer_step import check_tokenizer
from exporters.stages.upstream import export_upstream, upstream_model
from exporters.ternary.check import check_ternary
from recipes.file_types import FILE_TYPES
from recipes.problems import OperatorError, printable
from recipes.stages.export import ExportStage

PARITY_FILE = "parity.json"


def run(ctx: StageContext[ExportStage]) -> StageResult:
    """Write every file type, compare each with the model, and record the results in parity.json.

    Raises:
        OperatorError: the model is not supported, disk or memory is too small, or llama.cpp's kernels are missing.
        StageFailedError: every file differs from the model; fewer are set aside in `refused/`, with a warning.
        StopRequested: the operator asked to stop.
    """
    ctx.phase("loading")
    artifacts: list[Artifact] = []
    if ctx.stage.converter == "upstream":
        export, proofs = _write_upstream(ctx)
        _describe_files(export)
        _record_proofs(export, proofs)
    else:
        export, artifacts = _write_own(ctx)
        _describe_files(export)
        _record_proofs(export, prove_files(export))
    if ctx.stage.parity_positions:
        compare_files(export)
    accepted = set_aside(export)
    _save_record(export)
    if not accepted:
        raise StageFailedError("the exported files differ from the model: " + all_reasons(export))
    fixture = write_fixture(export, accepted)
    _write_serving_files(export, accepted)
    write_export_card(export, local_folder(ctx.inputs["model"]))
    artifacts += [Artifact(plan.title, "gguf", path.name) for plan in accepted for path in export.parts(plan)]
    artifacts += [
        Artifact(item.name, "gguf", item.path.name) for item in export.adapters if item.path.name not in export.reasons
    ]
    if export.importance is not None:
        artifacts.append(Artifact("imatrix", "report", IMPORTANCE_FILE))
    if fixture:
        artifacts.append(Artifact("fixture", "report", FIXTURE_FILE))
    return StageResult(export.metrics, [*artifacts, Artifact("parity", "report", PARITY_FILE)])


def _write_upstream(ctx: StageContext[ExportStage]) -> tuple[Export, dict[str, Proofs]]:
    folder = local_folder(ctx.inputs["model"])
    if ctx.stage.parity_positions:
        _check_reference_memory(ctx, upstream_model(folder))
    check_tokenizer(folder, ctx.warn_of("model"))
    export, proofs = export_upstream(ctx, folder)
    export.record["model"] = _describe(export)
    export.four_bit = _four_bit(export)
    return export, proofs


def _write_own(ctx: StageContext[ExportStage]) -> tuple[Export, list[Artifact]]:
    """Write every file and adapter, after all checks."""
    one_pass = open_one_pass(ctx)
    model = read_model(one_pass.folder, one_pass.weights) if one_pass else read_model(local_folder(ctx.inputs["model"]))
    model = replace(model, title=title_of(ctx, local_folder(ctx.inputs["model"]), model.parameters))
    check_tokenizer(model.folder, ctx.warn_of("model"))
    types = list(dict.fromkeys(ctx.stage.file_types))
    for name in types:
        if FILE_TYPES[name].ternary:
            check_ternary(model, name)
    own_types = ctx.stage.tensor_types
    check_tensor_types(model.shapes, own_types)
    target = ctx.stage.target_bits
    if target is not None:
        matrices(model)
        check_target(model, target, own_types)
    weighted = types_to_weigh(model, types, ctx.stage.imatrix, own_types)
    plans = [with_tensor_types(model.plan(name, importance=name in weighted), own_types) for name in types]
    export = Export(ctx, model, plans, ctx.stage.threads or default_threads(), one_pass=one_pass)
    export.record = {"format": 1, "threads": export.threads, "model": _describe(export)}
    for warning in [*(plan.fallback_note() for plan in export.plans), *model.warnings, *model.vocabulary.warnings]:
        if warning:
            ctx.warn(warning)
    export.adapters = plan_adapters(export)
    export.four_bit = _four_bit(export)
    positions = ctx.stage.parity_positions
    logits = (positions + ctx.stage.max_length) * int(model.config["vocab_size"]) * 4 if positions else 0
    files = sum(plan.bytes for plan in export.plans) + sum(item.bytes for item in export.adapters)
    files += plan_i2s(export) + (int(target * model.parameters / 8) if target is not None else 0)
    own = own_program(export)
    scratch = _references(export) * logits + export.split_bytes() + (own.source_plan.bytes if own else 0)
    check_disk(ctx.out, files=files, scratch=scratch)
    if target is not None:
        check_memory(model.parameters * 4)
    elif positions or weighted:
        _check_reference_memory(ctx, model)
    if weighted or target is not None:
        export.importance = measure_for(export)
    if target is not None:
        export.plans.append(plan_target(export, target, importance_request(export)))
    write_files(export, own)
    write_adapters(export)
    return export, write_i2s_file(export)


def _check_reference_memory(ctx: StageContext[ExportStage], model: Model) -> None:
    check_memory(reference_bytes(model.weights, model.config, ctx.stage.parity_positions, ctx.stage.max_length))


def _references(export: Export) -> int:
    """The most distributions of the compared positions that are on the disk together: of the model, of a file's own
    weights, and of what was trained over a 4-bit base."""
    over_four_bits = any(quantization_of_base(item.folder) for item in export.adapters)
    return 2 + (export.four_bit is not None) + over_four_bits


def _four_bit(export: Export) -> TrainedModel | None:
    """The model that was trained over a 4-bit base, if the exported one is its merge into 16 bits."""
    given = export.one_pass
    if not export.ctx.stage.parity_positions:
        return None
    if given is not None:
        return trained_with(given.base, given.adapter)
    try:
        return trained_before_merge(export.model.folder)
    except OperatorError as error:
        export.ctx.warn(
            "the model was merged from an adapter that was trained over a 4-bit base, and the files are not compared"
            f" with what was trained: {error}"
        )
        export.trained_is_gone = True
        return None


def _describe_files(export: Export) -> None:
    export.ctx.phase("computing SHA-256")
    export.files = {export.path(plan).name: describe_file(export, plan) for plan in export.plans}


def _record_proofs(export: Export, found: Mapping[str, Proofs]) -> None:
    """Record the proofs of the bytes and the meaning of every file."""
    for name, proofs in found.items():
        export.files[name] |= proofs.record()
        export.refuse(export.ctx.out / name, "bytes", proofs.bytes.findings)
        export.refuse(export.ctx.out / name, "meaning", proofs.meaning.findings)


def _describe_adapter(export: Export) -> dict[str, Any]:
    """The adapter that this export merged; empty without one."""
    given = export.ctx.inputs.get("adapter")
    return {"adapter": {"name": given.name, "manifest_sha256": given.manifest_sha256}} if given is not None else {}


def _write_serving_files(export: Export, accepted: list[FilePlan]) -> None:
    """Write the files that show how to serve the model. A tokenizer that cannot be read does not fail the export."""
    from transformers import AutoTokenizer

    model = export.model
    names = [export.path(plan).name for plan in sorted(accepted, key=lambda plan: -plan.bytes)]
    try:
        tokenizer = AutoTokenizer.from_pretrained(model.folder, local_files_only=True)
        adapters = [item.path.name for item in export.adapters if item.path.name not in export.reasons]
        write_serving_files(export.ctx.out, served(model.folder, model.config, tokenizer), names, adapters)
    except (OSError, ValueError, KeyError, TypeError) as error:
        export.ctx.warn(f"no {MODELFILE} was written: {type(error).__name__}: {printable(str(error), 200)}")


def _describe(export: Export) -> dict[str, Any]:
    model, given = export.model, export.ctx.inputs["model"]
    config = model.folder / "config.json"
    return {
        "name": given.name,
        "manifest_sha256": given.manifest_sha256,
        **_describe_adapter(export),
        "config_sha256": file_sha256(config),
        "architecture": model.architecture.name,
        "parameters": model.parameters,
        "reference": {name: importlib.metadata.version(name) for name in ("transformers", "torch", "gguf")}
        | {"dtype": "float32"},
    }


def _save_record(export: Export) -> None:
    compared = export.ctx.stage.parity_positions > 0
    export.record["files"] = list(export.files.values())
    export.record["passed"] = not export.reasons if compared or export.reasons else None
    export.record["problems"] = [f"{name}: {text}" for name, found in export.reasons.items() for text in found]
    write_json(export.ctx.out / PARITY_FILE, export.record)
