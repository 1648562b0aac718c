"""Compares an export's files with the model: token ids, distributions and inference; makes the fixture for other
runtimes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from engines.context import StageFailedError
from engines.files import file_sha256, write_text
from engines.llama.library import NativeError
from engines.llama.process import LlamaProcess
from engines.run_dir import FIXTURE_FILE
from exporters.gguf.quant_types import FilePlan
from exporters.hf_model.architectures import exact_context
from exporters.hf_model.model_folder import local_folder
from exporters.prompts.effective_tokens import answer_ends
from exporters.proof.fixture import Fixture, answer, fixture_prompts, protocol_of, strings_of
from exporters.proof.inference import LIMIT, Inference, measure, opening_ids, prompts_of
from exporters.proof.parity import Comparison, Reference, check_limits, compare, limits_of
from exporters.proof.parity_data import ParityData, read_parity_data
from exporters.proof.quality import light_of
from exporters.proof.reference_model import TorchLogits, load_reference
from exporters.proof.token_check import check_tokens
from exporters.stages.export_adapters import compare_adapters
from exporters.stages.export_job import Export, report_comparison
from exporters.stages.merge_parity import describe_unmerged
from recipes.file_types import FILE_TYPES

Progress = Callable[[int], None]


def compare_files(export: Export) -> list[str]:
    """Compare every file with transformers, record the results and make the fixture; return the problems."""
    from transformers import AutoTokenizer

    ctx, model = export.ctx, export.model
    ctx.phase("reading held-out text")
    tokenizer = AutoTokenizer.from_pretrained(model.folder, local_files_only=True)
    length = min(ctx.stage.max_length, exact_context(model.config))
    folder = local_folder(ctx.inputs["data"]) if "data" in ctx.inputs else None
    data = read_parity_data(folder, tokenizer, positions=ctx.stage.parity_positions, max_length=length)
    _describe_data(export, data, length)
    export.prompts = prompts_of(data.windows, length, cut_after=opening_ids(tokenizer))
    total, done = data.positions * (1 + len(export.plans)) * (1 + len(export.adapters)), 0
    total += data.positions * (export.one_pass is not None)

    def advance(positions: int) -> None:
        nonlocal done
        done += positions
        ctx.progress(done, total, "positions")

    ctx.phase("reference")
    scratch = ctx.work / "reference.f32"
    try:
        reference = Reference(scratch, data.windows, int(model.config["vocab_size"]))
        _compute_reference(export, reference, tokenizer, length, advance)
        problems = _compare_unmerged(export, reference, advance)
        for plan in export.plans:
            ctx.phase(f"comparing {plan.title}")
            problems += _compare_file(export, plan, tokenizer, data, reference, length, advance)
        problems += compare_adapters(export, reference, length, advance)
    except NativeError as error:
        raise StageFailedError(f"the comparison failed: {error}") from error
    finally:
        scratch.unlink(missing_ok=True)
    return problems


def _compute_reference(export: Export, reference: Reference, tokenizer: Any, length: int, advance: Progress) -> None:
    """Compute the model's own distributions, and its answers for the fixture."""
    model = load_reference(export.model.folder, export.threads, weights=export.model.weights)
    reference.compute(TorchLogits(model), advance)
    export.ctx.phase("answers for the fixture")
    asked = fixture_prompts(export.prompts, reference.windows, length)
    prompts = [answer(model, tokenizer, ids, LIMIT, export.stops) for ids in asked]
    protocol = protocol_of(export.stops, export.record["model"]["reference"])
    known = {key: export.record["model"][key] for key in ("name", "architecture", "manifest_sha256", "config_sha256")}
    model_facts = {**known, "vocab_size": int(export.model.config["vocab_size"])}
    export.fixture = Fixture(model_facts, protocol, prompts, strings_of(tokenizer), [])


def _compare_unmerged(export: Export, reference: Reference, advance: Progress) -> list[str]:
    """Compare the adapter over its base model with the merged model, if this export merged it; return the problems."""
    if export.one_pass is None:
        return []
    export.ctx.phase("comparing the adapter over its base")
    trained = TorchLogits(load_reference(export.one_pass.base, export.threads, adapter=export.one_pass.adapter))
    comparison = compare(reference, trained, advance)
    export.record["adapter_over_base"], problems = describe_unmerged(export.ctx, comparison)
    export.metrics |= {"merge_mean_kl": comparison.mean_kl, "merge_top1": comparison.top1}
    return problems


def _compare_file(
    export: Export,
    plan: FilePlan,
    tokenizer: Any,
    data: ParityData,
    reference: Reference,
    length: int,
    advance: Progress,
) -> list[str]:
    path = export.path(plan)
    with LlamaProcess(path, length, export.threads) as llama:
        tokens = check_tokens(tokenizer, llama, data, _ends(export, tokenizer))
        if plan is export.plans[0]:
            for warning in tokens.warnings():
                export.ctx.warn(warning)
        if llama.vocab_size != int(export.model.config["vocab_size"]):
            return [
                f"{plan.title}: llama.cpp reads {llama.vocab_size} tokens, but the model has "
                f"{export.model.config['vocab_size']}"
            ]
        comparison = compare(reference, llama, advance)
        inference = measure(llama, export.prompts, export.stops)
        export.record["llama"] = {**llama.library, "cache": llama.cache_type}
    problems = [*(f"{plan.title}: {text}" for text in tokens.problems()), *check_limits(plan.file_type, comparison)]
    export.record["files"].append(
        {
            **describe_file(export, plan),
            **comparison.record(),
            "light": light_of(plan.file_type, comparison.mean_kl),
            "reference_mean_kl": FILE_TYPES[plan.file_type].usual_kl,
            "inference": inference.record() if inference is not None else None,
            "tokenizer": asdict(tokens),
            "limits": {**limits_of(plan.file_type), "token_ids": "equal"},
            "passed": not problems,
            "problems": problems,
        }
    )
    _report(export, plan, comparison, inference)
    return problems


def _ends(export: Export, tokenizer: Any) -> list[int]:
    """Tokens that end an answer, in transformers and as the writer read them, without those that no file can name."""
    found = {*answer_ends(export.model.folder, export.model.config, tokenizer), *export.stops}
    return sorted(found - set(export.model.vocabulary.unplaced_ends))


def _report(export: Export, plan: FilePlan, comparison: Comparison, inference: Inference | None) -> None:
    prefix = plan.title.lower()
    if inference is not None:
        export.metrics[f"{prefix}_tokens_per_second"] = inference.tokens_per_second
        export.metrics[f"{prefix}_rss_bytes"] = float(inference.rss_bytes)
        export.metrics[f"{prefix}_answers_ended"] = inference.ended / inference.prompts
    report_comparison(export, prefix, prefix, comparison, {"top1_differences": float(len(comparison.differences))})


def _describe_data(export: Export, data: ParityData, length: int) -> None:
    asked = export.ctx.stage.parity_positions
    if data.positions < asked:
        export.ctx.warn(
            f"parity_positions — the held-out {data.source} has only {data.positions} of the {asked} requested "
            "positions; comparing on those"
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


def describe_file(export: Export, plan: FilePlan) -> dict[str, Any]:
    """The record of a file without its comparison."""
    path = export.path(plan)
    return {
        "file": path.name,
        "file_type": plan.title,
        "size_bytes": path.stat().st_size,
        "sha256": file_sha256(path),
        "bits_per_weight": plan.bits_per_weight,
        "imatrix": plan.weighted,
        "tensor_types": dict(plan.tensor_types),
        "fallbacks": {choice.shape.name: [choice.wanted, choice.type] for choice in plan.fallbacks},
        **(export.proofs[path.name].record() if path.name in export.proofs else {}),
    }


def write_fixture(export: Export) -> bool:
    """Write the fixture with the files' hashes; return whether there is one."""
    if export.fixture is None or not export.fixture.prompts:
        return False
    files = [
        {**{key: item[key] for key in ("file", "file_type", "sha256")}, "bytes": item["size_bytes"]}
        for item in export.record["files"]
    ]
    write_text(export.ctx.out / FIXTURE_FILE, replace(export.fixture, files=files).as_json())
    return True
