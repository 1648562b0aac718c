"""The merge stage: an adapter and its base become one model folder."""

from __future__ import annotations

import torch

from engines.host import Artifact, StageContext, StageResult
from exporters.merge import check_base, merge
from exporters.model_folder import local_folder


def run(ctx: StageContext) -> StageResult:
    """Merge `adapter` into `model` and write a model folder.

    Raises:
        OperatorError: the two do not belong together, or one of them cannot be merged.
        StopRequested: the operator asked to stop.
    """
    model, adapter = ctx.inputs["model"], ctx.inputs["adapter"]
    ctx.phase("loading")
    base, adapter_folder = local_folder(model), local_folder(adapter)
    unchecked = check_base(base, model.manifest_sha256, adapter_folder)
    if unchecked:
        ctx.warn(unchecked)
    if ctx.stage.threads:
        torch.set_num_threads(ctx.stage.threads)
    ctx.phase("merging")
    merged = merge(
        base,
        adapter_folder,
        ctx.out,
        dtype=ctx.stage.dtype,
        progress=lambda done, total: ctx.progress(done, total, "parameters"),
    )
    metrics = {"parameters": float(merged.parameters), "bytes": float(merged.bytes), "layers": float(merged.layers)}
    return StageResult(metrics, [Artifact("model", "model", ".")])
