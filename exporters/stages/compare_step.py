"""Compares an export's files with the model: token ids, distributions and inference; makes the fixture for other
runtimes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from engines.context import StageFailedError
from engines.files import file_sha256, write_text
from engines.llama.library import NativeError
from engines.llama.process import LlamaProcess
from engines.run_dir.paths import FIXTURE_FILE
from exporters.gguf.quant_types import FilePlan
from exporters.hf_model.architectures import exact_context
from exporters.hf_model.model_folder import local_folder
from exporters.lora.base_check import quantization_of_base
from exporters.lora.merge import open_merged
from exporters.lora.peft_folder import folder_for_peft
from exporters.prompts.effective_tokens import answer_ends
from exporters.proof.behaviour import behaviour_record, check_behaviour, expect, limits_of
from exporters.proof.fixture import Draft, Fixture, answers, fixture_prompts, protocol_of, strings_of
from exporters.proof.inference import Inference, measure, opening_ids, prompts_of
from exporters.proof.merge_proof import prove_sums
from exporters.proof.parity import Comparison, Reference, compare_each
from exporters.proof.parity_data import ParityData, read_parity_data
from exporters.proof.quality import quality_record
from exporters.proof.token_check import check_tokens
from exporters.reference.adapted_model import adapted_model
from exporters.reference.streamed_model import StreamedModel
from exporters.stages.export_adapters import compare_adapters
from exporters.stages.export_job import Export, report_comparison, to_trained
from exporters.stages.merge_parity import DIFFERS

Progress = Callable[[int], None]


@dataclass(frozen=True)
class _Given:
    """What every file of an export is compared on."""

    tokenizer: Any
    data: ParityData
    length: int
    trained: Reference
    four_bit: Reference | None = None
    """The model that was trained over a 4-bit base, of which `trained` is the 16-bit merge."""


def compare_files(export: Export) -> None:
    """Compare every file with transformers, record the results and the reasons against files, and make the fixture.

    Raises:
        StageFailedError: the merged model differs from the adapter over its base model.
    """
    from transformers import AutoTokenizer

    ctx, model = export.ctx, export.model
    ctx.phase("reading held-out text")
    tokenizer = AutoTokenizer.from_pretrained(model.folder, local_files_only=True)
    length = min(ctx.stage.max_length, exact_context(model.config))
    folder = local_folder(ctx.inputs["data"]) if "data" in ctx.inputs else None
    data = read_parity_data(folder, tokenizer, positions=ctx.stage.parity_positions, max_length=length)
    _describe_data(export, data, length)
    export.prompts = prompts_of(data.windows, length, cut_after=opening_ids(tokenizer))
    total, done = data.positions * (1 + 2 * len(export.plans)), 0
    total += data.positions * len(export.adapters) * (1 + len(export.accepted))
    total += data.positions * sum(quantization_of_base(item.folder) is not None for item in export.adapters)
    total += 2 * data.positions * (export.one_pass is not None)
    total += data.positions * (export.four_bit is not None)

    def advance(positions: int) -> None:
        nonlocal done
        done += positions
        ctx.progress(min(done, total), total, "positions")

    ctx.phase("reference")
    trained = Reference(ctx.work / "reference.f32", data.windows, int(model.config["vocab_size"]))
    given = _Given(tokenizer, data, length, trained)
    try:
        _compute_reference(export, given, advance)
        given = replace(given, four_bit=_four_bit_reference(export, trained, advance))
        problems = _compare_unmerged(export, trained, advance)
        for plan in export.plans:
            _prove_file(export, plan, given, advance)
        compare_adapters(export, trained, length, advance)
        ctx.progress(total, total, "positions")
    finally:
        for scratch in ctx.work.glob("*.f32"):
            scratch.unlink()
    if problems:
        raise StageFailedError("; ".join(problems))


def _compute_reference(export: Export, given: _Given, advance: Progress) -> None:
    """Compute the model's own distributions, and its answers for the fixture."""
    network = StreamedModel(export.model.folder, export.model.weights, export.threads)
    given.trained.compute(network, advance)
    export.ctx.phase("answers for the fixture")
    asked = fixture_prompts(export.prompts, given.data.windows, given.length)
    vocabulary = int(export.model.config["vocab_size"])

    def scratch(positions: int) -> NDArray[np.float32]:
        path = export.ctx.work / "answers.f32"
        return np.memmap(path, np.float32, "w+", shape=(positions, vocabulary))

    with _Drafts(export, given.length) as drafts:
        prompts = answers(network, given.tokenizer, asked, export.stops, scratch, drafts.draft)
    protocol = protocol_of(export.stops, export.record["model"]["reference"])
    known = {key: export.record["model"][key] for key in ("name", "architecture", "manifest_sha256", "config_sha256")}
    model_facts = {**known, "vocab_size": vocabulary}
    export.fixture = Fixture(model_facts, protocol, prompts, strings_of(given.tokenizer), [])


def _four_bit_reference(export: Export, model: Reference, advance: Progress) -> Reference | None:
    """The distributions of the model that was trained over a 4-bit base, and how far the exported model is from it;
    None where the exported model is the trained one."""
    if export.four_bit is None:
        return None
    export.ctx.phase("reference of the 4-bit base that was trained on")
    found = Reference(export.ctx.work / "four-bit.f32", model.windows, model.logits.shape[1])
    found.compute(StreamedModel(export.model.folder, export.four_bit.weights(), export.threads), advance)
    distance = found.compare(model)
    export.record["trained_over"] = {**export.four_bit.quantization, "model": distance.record()}
    export.metrics |= to_trained("model", distance)
    return found


class _Drafts:
    """Guesses of the model's answers by llama.cpp on the largest file; none if it cannot be loaded."""

    def __init__(self, export: Export, length: int) -> None:
        largest = max(export.plans, key=lambda plan: plan.bytes)
        try:
            self._llama: LlamaProcess | None = LlamaProcess(export.path(largest), length, export.threads)
        except NativeError:
            self._llama = None  # the comparison of this file says why
        self._stops = export.stops

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        if self._llama is not None:
            self._llama.close()

    @property
    def draft(self) -> Draft:
        return self._guess

    def _guess(self, ids: list[int], limit: int) -> list[int]:
        if self._llama is None or limit <= 0:
            return []
        try:
            return self._llama.generate(ids, limit, self._stops).ids
        except NativeError:
            self._llama = None
            return []


def _compare_unmerged(export: Export, merged: Reference, advance: Progress) -> list[str]:
    """Compare the adapter over its base model with the merged model, if this export merged it; return the problems."""
    given = export.one_pass
    if given is None:
        return []
    export.ctx.phase("comparing the adapter over its base")
    vocabulary, work = merged.logits.shape[1], export.ctx.work
    trained = Reference(work / "adapted.f32", merged.windows, vocabulary)
    trained.compute(
        adapted_model(given.base, export.threads, folder_for_peft(given.adapter, work), vocabulary), advance
    )
    sums = open_merged(given.base, [(given.adapter, 1.0)], dtype="float32")
    proof, _ = prove_sums(given.folder, sums, trained, work / "own.f32", export.threads, advance)
    quality = trained.compare(merged)
    export.record["adapter_over_base"] = proof.record(quality)
    export.metrics |= {"merge_mean_kl": quality.mean_kl, "merge_top1": quality.top1}
    return [] if not proof.problems else [f"{DIFFERS}: {'; '.join(proof.problems)}"]


def _prove_file(export: Export, plan: FilePlan, given: _Given, advance: Progress) -> None:
    """Compare one file; a file that llama.cpp cannot use is refused like one that differs."""
    path = export.path(plan)
    try:
        _compare_file(export, plan, path, given, advance)
    except NativeError as error:
        export.refuse(path, "behaviour", [str(error)])


def _compare_file(export: Export, plan: FilePlan, path: Path, given: _Given, advance: Progress) -> None:
    ctx, record = export.ctx, export.files[path.name]
    ctx.phase(f"reference of {plan.title}")
    expected = expect(path, export.model, given.trained, ctx.work / "own.f32", export.threads, advance)
    ctx.phase(f"comparing {plan.title}")
    with LlamaProcess(path, given.length, export.threads) as llama:
        tokens = check_tokens(given.tokenizer, llama, given.data, _ends(export, given.tokenizer))
        if plan is export.plans[0]:
            for warning in tokens.warnings():
                ctx.warn(warning)
        record.setdefault("meaning", {})["tokenizer"] = asdict(tokens)
        export.refuse(path, "meaning", tokens.problems())
        if llama.vocab_size != int(export.model.config["vocab_size"]):
            export.refuse(
                path,
                "meaning",
                [f"llama.cpp reads {llama.vocab_size} tokens, but the model has {export.model.config['vocab_size']}"],
            )
            return
        references = [expected.reference, given.trained, *([given.four_bit] if given.four_bit else [])]
        own, total, *from_trained = compare_each(references, llama, advance)
        inference = measure(llama, export.prompts, export.stops)
        export.record["llama"] = {**llama.library, "cache": llama.cache_type}
    limits = limits_of(plan.file_type, expected)
    problems = check_behaviour(own, limits)
    export.refuse(path, "behaviour", problems)
    weights_kl = given.trained.mean_kl(expected.reference) if expected.weights == "file" else None
    record |= {
        "behaviour": behaviour_record(own, expected, limits, problems),
        "quality": quality_record(plan.file_type, total, weights_kl),
        "inference": inference.record() if inference is not None else None,
    }
    more = {} if weights_kl is None else {"arithmetic_mean_kl": own.mean_kl, "weights_mean_kl": weights_kl}
    if from_trained:
        record["to_trained"] = from_trained[0].record()
    if not export.trained_is_gone:
        more |= to_trained("", from_trained[0] if from_trained else total)
    _report(export, plan, total, inference, more)


def _ends(export: Export, tokenizer: Any) -> list[int]:
    """Tokens that end an answer, in transformers and as the writer read them, without those that no file can name."""
    found = {*answer_ends(export.model.folder, export.model.config, tokenizer), *export.stops}
    return sorted(found - set(export.model.vocabulary.unplaced_ends))


def _report(
    export: Export, plan: FilePlan, comparison: Comparison, inference: Inference | None, more: dict[str, float]
) -> None:
    prefix = plan.title.lower()
    if inference is not None:
        export.metrics[f"{prefix}_tokens_per_second"] = inference.tokens_per_second
        export.metrics[f"{prefix}_rss_bytes"] = float(inference.rss_bytes)
        export.metrics[f"{prefix}_answers_ended"] = inference.ended / inference.prompts
    more = {
        "top1_differences": float(len(comparison.differences)),
        "perplexity_ratio": comparison.perplexity_ratio,
        **more,
    }
    report_comparison(export, prefix, prefix, comparison, more)


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


def describe_file(export: Export, plan: FilePlan) -> dict[str, Any]:
    """The record of a file without its proofs."""
    path = export.path(plan)
    return {
        "file": path.name,
        "file_type": plan.title,
        "size_bytes": export.bytes_of(plan),
        "parts": [
            {"file": part.name, "bytes": part.stat().st_size, "sha256": file_sha256(part)}
            for part in export.parts(plan)[1:]
        ],
        "sha256": file_sha256(path),
        "bits_per_weight": plan.bits_per_weight,
        "imatrix": plan.weighted,
        "tensor_types": dict(plan.tensor_types),
        "fallbacks": {choice.shape.name: [choice.wanted, choice.type] for choice in plan.fallbacks},
    }


def write_fixture(export: Export, accepted: Sequence[FilePlan]) -> bool:
    """Write the fixture with the accepted files' hashes; return whether there is one."""
    if export.fixture is None or not export.fixture.prompts:
        return False
    records = [export.files[export.path(plan).name] for plan in accepted]
    files = [
        {**{key: item[key] for key in ("file", "file_type", "sha256")}, "bytes": item["size_bytes"]} for item in records
    ]
    write_text(export.ctx.out / FIXTURE_FILE, replace(export.fixture, files=files).as_json())
    return True
