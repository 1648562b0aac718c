"""The merge stage: merges adapters into their base model and writes a model folder."""

from __future__ import annotations

from engines.context import Artifact, Input, StageContext, StageResult
from engines.files import write_json
from exporters.hf_model.model_folder import local_folder
from exporters.lora.base_check import check_base, refuse_quantized_name
from exporters.lora.merge import merge
from exporters.lora.trained_model import MERGE_FILE
from exporters.stages.card import write_merge_card
from exporters.stages.merge_parity import TO_TRAINED, compare_merge
from recipes.stages.merge import MergeStage


def run(ctx: StageContext[MergeStage]) -> StageResult:
    """Merge one adapter or several into `model` and write a model folder.

    Raises:
        OperatorError: adapters and model do not belong together, or one of them cannot be merged.
        StopRequested: the operator asked to stop.
    """
    stage, model = ctx.stage, ctx.inputs["model"]
    ctx.phase("loading")
    adapters = [local_folder(item) for item in adapter_inputs(ctx)]
    if model.path is None:
        refuse_quantized_name(model.name, adapters[0])
    base = local_folder(model)
    for adapter in adapters:
        for warning in check_base(base, model.manifest_sha256, adapter, base_rounding=stage.base_rounding):
            ctx.warn(warning)
    ctx.phase("merging")
    merged = merge(
        base,
        list(zip(adapters, stage.weights or [1.0] * len(adapters), strict=True)),
        ctx.out,
        dtype=stage.dtype,
        untie=stage.untie_word_embeddings,
        base_rounding=stage.base_rounding,
        threads=stage.threads or 1,
        progress=lambda done, total: ctx.progress(done, total, "parameters"),
    )
    for warning in merged.warnings:
        ctx.warn(warning)
    metrics = {"parameters": float(merged.parameters), "bytes": float(merged.bytes), "tensors": float(merged.tensors)}
    artifacts = [Artifact("model", "model", ".")]
    if stage.parity_positions and len(adapters) == 1 and (stage.weights or [1.0]) == [1.0]:
        record = compare_merge(ctx, base, adapters[0], merged)
        if record is not None:
            write_json(ctx.out / MERGE_FILE, record)
            metrics |= {name: record["merged"][name] for name in ("mean_kl", "max_kl", "top1")}
            metrics |= {name: record[name] for name in TO_TRAINED}
            artifacts.append(Artifact("parity", "report", MERGE_FILE))
    write_merge_card(ctx, base, metrics)
    return StageResult(metrics, artifacts)


def adapter_inputs(ctx: StageContext[MergeStage]) -> list[Input]:
    """The adapters of a stage: its `adapter`, or its `adapters` in order."""
    listed = [ctx.inputs[name] for name in ctx.inputs if name.startswith("adapters[")]
    return [ctx.inputs["adapter"]] if "adapter" in ctx.inputs else listed
