"""The export stage: a model folder becomes GGUF files, each proven to be the model."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import os
from dataclasses import asdict, replace
from typing import Any

from engines.events import Evaluated
from engines.host import Artifact, StageContext, StageFailedError, StageResult
from engines.llama.library import NativeError
from engines.llama.process import LlamaProcess
from exporters.audit import audit
from exporters.export_adapters import compare_adapters, plan_adapters, write_adapters
from exporters.export_job import Export, file_sha256
from exporters.files_step import own_program, write_files
from exporters.gguf_write import read_model
from exporters.i2s_step import plan_i2s, write_i2s_file
from exporters.importance import Importance, load_importance, save_importance
from exporters.importance_step import IMPORTANCE_FILE, ImportanceRequest, measure_importance, types_to_weigh
from exporters.inference import Inference, measure, opening_ids, prompts_of
from exporters.model_folder import local_folder
from exporters.parity import (
    Comparison,
    Reference,
    check_limits,
    check_tokens,
    compare,
    limits_of,
)
from exporters.parity_data import ParityData, read_parity_data
from exporters.preflight import check_disk, check_memory, default_threads
from exporters.quality import REFERENCE_KL, light_of
from exporters.quant_types import TERNARY, FilePlan
from exporters.serving_files import MODELFILE, served, write_serving_files
from exporters.ternary import check_ternary
from recipes.problems import printable

PARITY_FILE = "parity.json"


def run(ctx: StageContext) -> StageResult:
    """Write every file type, compare each with the model, and describe it all in parity.json.

    Raises:
        OperatorError: the model cannot be written, or disk, memory or llama.cpp's kernels are missing.
        StageFailedError: a file is not the model: token ids or distributions differ by more than its type allows.
        StopRequested: the operator asked to stop.
    """
    ctx.phase("loading")
    model = read_model(local_folder(ctx.inputs["model"]))
    types = list(dict.fromkeys(ctx.stage.file_types))
    for name in TERNARY.intersection(types):
        check_ternary(model, name)
    weighted = types_to_weigh(model, types, ctx.stage.imatrix)
    plans = [model.plan(name, importance=name in weighted) for name in types]
    export = Export(ctx, model, plans, ctx.stage.threads or default_threads())
    export.record = {"format": 1, "threads": export.threads, "model": _describe(export)}
    for warning in [*(plan.fallback_note() for plan in export.plans), *model.vocabulary.warnings]:
        if warning:
            ctx.warn(warning)
    export.adapters = plan_adapters(export)
    positions = ctx.stage.parity_positions
    reference_bytes = (positions + ctx.stage.max_length) * int(model.config["vocab_size"]) * 4 if positions else 0
    files = sum(plan.bytes for plan in export.plans) + sum(item.bytes for item in export.adapters)
    files += plan_i2s(export)
    own = own_program(export)
    check_disk(ctx.out, files=files, scratch=reference_bytes + (own.source_plan.bytes if own else 0))
    if positions or weighted:
        check_memory(model.parameters * 4)
    if weighted:
        export.importance = _measure_importance(export)
    write_files(export, own)
    write_adapters(export)
    artifacts = write_i2s_file(export)
    problems = _audit_files(export)
    problems += _compare_files(export) if positions else []
    _save_record(export, problems)
    _write_serving_files(export)
    if problems:
        raise StageFailedError("the exported files are not the model: " + "; ".join(problems))
    artifacts += [Artifact(plan.file_type, "gguf", export.path(plan).name) for plan in export.plans]
    artifacts += [Artifact(item.name, "gguf", item.path.name) for item in export.adapters]
    if export.importance is not None:
        artifacts.append(Artifact("imatrix", "report", IMPORTANCE_FILE))
    return StageResult(export.metrics, [*artifacts, Artifact("parity", "report", PARITY_FILE)])


def _measure_importance(export: Export) -> Importance:
    ctx, stage = export.ctx, export.ctx.stage
    ctx.phase("importance matrix")
    length = min(stage.max_length, int(export.model.config["max_position_embeddings"]))
    folder = local_folder(ctx.inputs["data"]) if "data" in ctx.inputs else None
    request = ImportanceRequest(folder, stage.imatrix_tokens, stage.parity_positions, length, export.threads)
    importance = measure_importance(export.model, request, lambda done, total: ctx.progress(done, total, "tokens"))
    path = ctx.out / IMPORTANCE_FILE
    save_importance(importance, path)
    # The file holds sums in float32: what others read from it is what our kernels are given too.
    importance = replace(importance, values=load_importance(path).values)
    if importance.tokens < stage.imatrix_tokens:
        ctx.warn(
            f"imatrix_tokens — the held-out text has only {importance.tokens} of the {stage.imatrix_tokens} asked for"
        )
    export.metrics["imatrix_tokens"] = float(importance.tokens)
    export.record["imatrix"] = {
        "file": path.name,
        "sha256": file_sha256(path),
        "tokens": importance.tokens,
        "source": importance.source,
    }
    return importance


def _audit_files(export: Export) -> list[str]:
    """Hold every file against the folder it was made of, key by key; returns what is wrong."""
    findings = export.record["audit"] = {}
    for plan in export.plans:
        export.ctx.phase(f"auditing {plan.file_type}")
        path = export.path(plan)
        findings[path.name] = audit(path, export.model.folder, config=export.model.config, weights=export.model.weights)
    return [f"{name}: {finding}" for name, found in findings.items() for finding in found]


def _compare_files(export: Export) -> list[str]:
    """Compare every file with transformers; returns what is wrong."""
    from transformers import AutoTokenizer

    ctx, model = export.ctx, export.model
    ctx.phase("reading held-out text")
    tokenizer = AutoTokenizer.from_pretrained(model.folder, local_files_only=True)
    length = min(ctx.stage.max_length, int(model.config["max_position_embeddings"]))
    folder = local_folder(ctx.inputs["data"]) if "data" in ctx.inputs else None
    data = read_parity_data(folder, tokenizer, positions=ctx.stage.parity_positions, max_length=length)
    _describe_data(export, data, length)
    export.prompts = prompts_of(data.windows, length, cut_after=opening_ids(tokenizer))
    total, done = data.positions * (1 + len(export.plans)) * (1 + len(export.adapters)), 0

    def advance(positions: int) -> None:
        nonlocal done
        done += positions
        ctx.progress(done, total, "positions")

    ctx.phase("reference")
    scratch = ctx.work / "reference.f32"
    try:
        reference = Reference(scratch, data.windows, int(model.config["vocab_size"]))
        reference.compute(model.folder, export.threads, advance)
        problems: list[str] = []
        for plan in export.plans:
            ctx.phase(f"comparing {plan.file_type}")
            problems += _compare_file(export, plan, tokenizer, data, reference, length, advance)
        problems += compare_adapters(export, reference, length, advance)
    except NativeError as error:
        raise StageFailedError(f"the comparison could not be made: {error}") from error
    finally:
        scratch.unlink(missing_ok=True)
    return problems


def _compare_file(
    export: Export, plan: FilePlan, tokenizer: Any, data: ParityData, reference: Reference, length: int, advance: Any
) -> list[str]:
    path = export.path(plan)
    with LlamaProcess(path, length, export.threads) as llama:
        tokens = check_tokens(tokenizer, llama, data)
        if llama.vocab_size != int(export.model.config["vocab_size"]):
            return [
                f"{plan.file_type}: llama.cpp sees {llama.vocab_size} tokens, the model has {export.model.config['vocab_size']}"
            ]
        comparison = compare(reference, llama, advance)
        inference = measure(llama, export.prompts, export.stops)
        export.record["llama"] = {**llama.library, "cache": llama.cache_type}
    problems = [*(f"{plan.file_type}: {text}" for text in tokens.problems()), *check_limits(plan.file_type, comparison)]
    export.record["files"].append(
        {
            **_describe_file(export, plan),
            **comparison.record(),
            "light": light_of(plan.file_type, comparison.mean_kl),
            "reference_mean_kl": REFERENCE_KL.get(plan.file_type),
            "inference": inference.record() if inference is not None else None,
            "tokenizer": asdict(tokens),
            "limits": {**limits_of(plan.file_type), "token_ids": "equal"},
            "passed": not problems,
            "problems": problems,
        }
    )
    _report(export, plan, comparison, inference)
    return problems


def _write_serving_files(export: Export) -> None:
    """How to serve what was written. Text for people: a tokenizer that cannot be read costs these files, not the export."""
    from transformers import AutoTokenizer

    model = export.model
    names = [export.path(plan).name for plan in sorted(export.plans, key=lambda plan: -plan.bytes)]
    try:
        tokenizer = AutoTokenizer.from_pretrained(model.folder, local_files_only=True)
        adapters = [item.path.name for item in export.adapters]
        write_serving_files(export.ctx.out, served(model.folder, model.config, tokenizer), names, adapters)
    except (OSError, ValueError, KeyError, TypeError) as error:
        export.ctx.warn(f"no {MODELFILE} was written: {type(error).__name__}: {printable(str(error), 200)}")


def _report(export: Export, plan: FilePlan, comparison: Comparison, inference: Inference | None) -> None:
    prefix = plan.file_type.lower()
    if inference is not None:
        export.metrics[f"{prefix}_tokens_per_second"] = inference.tokens_per_second
        export.metrics[f"{prefix}_rss_bytes"] = float(inference.rss_bytes)
        export.metrics[f"{prefix}_answers_ended"] = inference.ended / inference.prompts
    values = {
        "mean_kl": comparison.mean_kl,
        "max_kl": comparison.max_kl,
        "top1": comparison.top1,
        "top1_differences": float(len(comparison.differences)),
    }
    export.metrics |= {f"{prefix}_{name}": value for name, value in values.items()}
    export.ctx.emit(
        Evaluated(
            stage=export.ctx.stage_name,
            attempt=export.ctx.attempt,
            step=None,
            loss=comparison.loss,
            perplexity=math.exp(min(comparison.loss, 700.0)),
            tokens=comparison.loss_tokens,
            protocol=f"parity:{prefix}",
            metrics={**values, "reference_loss": comparison.reference_loss, "positions": float(comparison.positions)},
        )
    )


def _describe(export: Export) -> dict[str, Any]:
    model, given = export.model, export.ctx.inputs["model"]
    config = model.folder / "config.json"
    return {
        "name": given.name,
        "manifest_sha256": given.manifest_sha256,
        "config_sha256": hashlib.sha256(config.read_bytes()).hexdigest(),
        "architecture": model.architecture.name,
        "parameters": model.parameters,
        "reference": {name: importlib.metadata.version(name) for name in ("transformers", "torch", "gguf")}
        | {"dtype": "float32"},
    }


def _describe_data(export: Export, data: ParityData, length: int) -> None:
    asked = export.ctx.stage.parity_positions
    if data.positions < asked:
        export.ctx.warn(
            f"parity_positions — the held-out {data.source} has only {data.positions} positions of the {asked} asked for"
        )
    export.metrics["positions"] = float(data.positions)
    export.record["data"] = {
        "source": data.source,
        "split": data.split,
        "windows": len(data.windows),
        "positions": data.positions,
        "asked": asked,
        "max_length": length,
        "sha256": data.sha256,
    }
    export.record["files"] = []


def _describe_file(export: Export, plan: FilePlan) -> dict[str, Any]:
    path = export.path(plan)
    return {
        "file": path.name,
        "file_type": plan.file_type,
        "bytes": path.stat().st_size,
        "sha256": file_sha256(path),
        "bits_per_weight": plan.bits_per_weight,
        "imatrix": plan.weighted,
        "fallbacks": {choice.shape.name: [choice.wanted, choice.type] for choice in plan.fallbacks},
    }


def _save_record(export: Export, problems: list[str]) -> None:
    if "files" not in export.record:
        export.record["files"] = [_describe_file(export, plan) for plan in export.plans]
    compared = export.ctx.stage.parity_positions > 0
    export.record |= {"passed": not problems if compared else None, "problems": problems}
    path = export.ctx.out / PARITY_FILE
    temporary = path.with_name(path.name + ".partial")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(export.record, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
