"""Merges and converts in one pass: writes the GGUF files from base model and adapter, without a merged copy on disk.

The bytes equal those of a merge followed by an export. The config and the tokenizer, which transformers and the audit
need, are written to the stage's work folder; the tensors are summed while they are read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from engines.context import StageContext
from engines.data.tokenizer_files import copy_tokenizer
from exporters.hf_model.model_folder import local_folder
from exporters.lora.base_check import check_base
from exporters.lora.merge import open_merged, write_config, write_ends
from exporters.lora.merged_weights import MergedWeights
from recipes.stages.export import ExportStage


@dataclass(frozen=True)
class OnePass:
    """An adapter that is merged while files are written.

    Attributes:
        base: the base model's folder.
        adapter: the adapter's folder.
        folder: config and tokenizer of the merged model, without weights.
        weights: its tensors.
    """

    base: Path
    adapter: Path
    folder: Path
    weights: MergedWeights


def open_one_pass(ctx: StageContext[ExportStage]) -> OnePass | None:
    """The merge of the stage's `adapter`; None without one.

    Raises:
        OperatorError: base model and adapter do not belong together, or cannot be merged.
    """
    if "adapter" not in ctx.inputs:
        return None
    model = ctx.inputs["model"]
    base, adapter = local_folder(model), local_folder(ctx.inputs["adapter"])
    for warning in check_base(base, model.manifest_sha256, adapter):
        ctx.warn(warning)
    weights = open_merged(base, [(adapter, 1.0)])
    for warning in weights.warnings:
        ctx.warn(warning)
    folder = ctx.work / "merged"
    folder.mkdir()
    write_config(weights, folder)
    copy_tokenizer(folder, adapter, base)
    write_ends(weights, folder, base, [adapter])
    return OnePass(base, adapter, folder, weights)
