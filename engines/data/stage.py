"""The prepare stage: text, tokens or messages, by the recipe's `output`."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from engines.context import Artifact, StageContext, StageResult
from engines.data.messages import CodeOptions, prepare_messages
from engines.data.preparing.stage import run_rows
from engines.data.sources.documents import SourceFields
from engines.data.sources.report import what_to_know
from engines.data.text import NearPairs, TextPart, prepare_text
from engines.data.tokenizer_settings import PIECES_FILE, WHOLE_FILE
from engines.data.tokens import prepare_tokens
from engines.inputs.code_or_rows import asks_about_code, unused_warning
from engines.inputs.mixture import SourceShare
from engines.processor import usable_cores
from engines.run_dir.paths import RunDir
from engines.training.inputs import input_folder as local_folder
from engines.training.inputs import not_loaded
from recipes.problems import OperatorError
from recipes.stages.fields import StageFields
from recipes.stages.prepare import PrepareMessages, PrepareStage, PrepareText, PrepareTokens, WeightedSource

_ABOUT_TOKENS = {
    "space_marks": "document(s) contain U+2581, which the tokenizer reads as a space",
    "unknown_tokens": "token(s) stand for text that the tokenizer's vocabulary cannot spell; a model never sees it",
    "changed": "of the first documents are not what their tokens decode to: the tokenizer does not preserve text",
    "left_out": "document(s) were left out, because the tokenizer reads a part of their text as a control token",
}


def run(ctx: StageContext[PrepareStage]) -> StageResult:
    """Write the recipe's `output` into `ctx.out`."""
    stage = ctx.stage
    if isinstance(stage, PrepareText):
        return _text(ctx, stage)
    if isinstance(stage, PrepareTokens):
        return _tokens(ctx, stage)
    if isinstance(stage, PrepareMessages):
        return _messages(ctx, stage)
    raise TypeError(f"not a prepare stage: {type(stage).__name__}")


def _text(ctx: StageContext[StageFields], stage: PrepareText) -> StageResult:
    metadata = prepare_text(
        stage.source if isinstance(stage.source, str) else [_part(stage, one) for one in stage.source],
        ctx.out,
        fields=_fields(stage),
        max_bytes=stage.max_bytes,
        val_fraction=stage.val_fraction,
        test_fraction=stage.test_fraction,
        seed=stage.seed,
        temperature=stage.mixture_temperature,
        near_duplicates=stage.near_duplicates,
        near=_near(stage),
        work=ctx.work,
        report=ctx.progress,
        phase=ctx.phase,
    )
    for sentence in what_to_know(metadata):
        ctx.warn(sentence)
    if moved := metadata["moved_to_fill_a_split"]:
        ctx.warn(f"the corpus is small: {len(moved)} document(s) were moved so that no split is empty")
    splits = metadata["splits"].values()
    metrics = {
        "documents": float(sum(split["documents"] for split in splits)),
        "bytes": float(sum(split["bytes"] for split in splits)),
        "dropped": float(sum(metadata["dropped"].values())),
        "divided": float(metadata["divided"]),
        "duplicates": float(metadata["dropped"].get("duplicate", 0)),
    }
    if stage.near_duplicates != "ignore":
        metrics["near_duplicates"] = float(metadata["near_duplicates"]["found"])
    if "sources" in metadata:
        metrics["mixture_error"] = max(abs(one["mixed_share"] - one["share"]) for one in metadata["sources"])
    return StageResult(metrics, [Artifact(ctx.stage_name, "text", ".")])


def _near(stage: PrepareText) -> NearPairs | None:
    if stage.near_duplicates == "ignore":
        return None
    from engines.data.preparing.near_documents import near_pairs  # needs numpy and rensa, which other stages do not

    return partial(near_pairs, similarity=stage.near_duplicate_similarity)


def _fields(stage: PrepareText) -> SourceFields:
    return SourceFields(
        include=stage.include,
        exclude=stage.exclude,
        format=stage.format,
        text_column=stage.columns.get("text", "text"),
        encoding=stage.encoding,
        on_bad_row=stage.on_bad_row,
        max_file_bytes=stage.max_file_bytes,
        max_document_bytes=stage.max_document_bytes,
        split_by=stage.split_by,
        clean=stage.clean,
    )


def _part(stage: PrepareText, one: WeightedSource) -> TextPart:
    """One of several sources; what it does not say is that of the stage."""
    whole = _fields(stage)
    fields = replace(
        whole,
        include=whole.include if one.include is None else one.include,
        exclude=whole.exclude if one.exclude is None else one.exclude,
        format=one.format or whole.format,
        text_column=whole.text_column if one.columns is None else one.columns.get("text", "text"),
        encoding=one.encoding or whole.encoding,
    )
    return TextPart(
        place=one.path, share=SourceShare(one.label, one.weight, one.epochs), fields=fields, optional=one.optional
    )


def _not_as_transformers(folder: Path) -> str:
    """What to know before a text is encoded with a tokenizer.model that transformers reads in another way, or empty."""
    if (folder / WHOLE_FILE).is_file() or not (folder / PIECES_FILE).is_file():
        return ""
    from transformers import AutoTokenizer  # seconds; most folders have tokenizer.json

    from engines.data.tokenizer_class import pieces_differ

    try:
        wrong = pieces_differ(folder, AutoTokenizer.from_pretrained(str(folder), local_files_only=True))
    except Exception as error:  # noqa: BLE001 - the library raises anything; encoding reports a damaged file itself
        wrong = not_loaded(folder, "the tokenizer", error)
    return "" if wrong is None else f"{wrong.message}; {wrong.hint}; a pretrain stage refuses these tokens"


def _tokens(ctx: StageContext[StageFields], stage: PrepareTokens) -> StageResult:
    ctx.phase("tokenizing")
    tokenizer = local_folder(ctx.inputs["tokenizer"])
    if warning := _not_as_transformers(tokenizer):
        ctx.warn(warning)
    counts = prepare_tokens(
        input_folder(ctx, "data"),
        tokenizer,
        ctx.out,
        eos_token=stage.eos_token,
        shard_tokens=stage.shard_tokens,
        processes=stage.threads or usable_cores(),
        work=ctx.work,
        earlier=[RunDir(ctx.run_root).work(ctx.stage_name, attempt) for attempt in range(ctx.attempt - 1, 0, -1)],
        report=ctx.progress,
        warn=ctx.warn,
    )
    for name, sentence in _ABOUT_TOKENS.items():
        if counts[name]:
            ctx.warn(f"{counts[name]} {sentence}")
    metrics = {name: float(value) for name, value in counts.items()}
    if counts["tokens"]:
        metrics["bytes_per_token"] = counts["bytes"] / counts["tokens"]
    return StageResult(metrics, [Artifact(ctx.stage_name, "tokens", ".")])


def _messages(ctx: StageContext[Any], stage: PrepareMessages) -> StageResult:
    """Questions about code, or rows as they are."""
    if stage.command or not asks_about_code(stage, ctx.inputs["data"].path):
        return run_rows(ctx)
    return _questions(ctx, stage)


def _questions(ctx: StageContext[Any], stage: PrepareMessages) -> StageResult:
    metadata = prepare_messages(
        input_folder(ctx, "data"),
        ctx.out,
        ctx.work,
        CodeOptions.of(stage),
        val_fraction=stage.val_fraction,
        test_fraction=stage.test_fraction,
        seed=stage.seed,
        report=ctx.progress,
        phase=ctx.phase,
    )
    splits = metadata["splits"]
    if unused := unused_warning(stage, about_code=True):
        ctx.warn(unused)
    if secrets := metadata["secrets"]:
        ctx.warn(f"the sources contain secrets ({', '.join(secrets)}); examples with one are left out")
    for name in ("val", "test"):
        if not splits[name]["examples"] and metadata[f"{name}_fraction"] != 0:
            ctx.warn(f"the {name} split has no examples")
    if stage.probe_rows and metadata["probe_rows"] < stage.probe_rows:
        ctx.warn(f"the fact probe has {metadata['probe_rows']} rows: the test split has no more such facts")
    metrics = {
        **({"probe_rows": float(metadata["probe_rows"])} if stage.probe_rows else {}),
        "examples": float(sum(split["examples"] for split in splits.values())),
        "rows": float(sum(split["rows"] for split in splits.values())),
        "dropped": float(sum(metadata["dropped"].values())),
        "secrets": float(sum(metadata["secrets"].values())),
    }
    return StageResult(metrics, [Artifact(ctx.stage_name, "messages", ".")])


def input_folder(ctx: StageContext[StageFields], field: str) -> Path:
    """The folder of an input.

    Raises:
        OperatorError: the input is not a folder on this machine.
    """
    given = ctx.inputs[field]
    if given.path is None or not given.path.is_dir():
        raise OperatorError(f"{field} = {given.name!r} is not a folder", "give a stage of the recipe, or a folder")
    return given.path
