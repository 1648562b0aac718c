"""Preference training: a model and pairs of answers in, a LoRA adapter folder or a model folder out."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import set_seed
from trl import DPOConfig

from engines.chat.ends import trained_ends
from engines.context import Artifact, StageContext, StageResult
from engines.data.door import source_of_stage
from engines.finetune.added_tokens import use_template
from engines.finetune.model import add_adapter, stored_in_bfloat16
from engines.finetune.plain_adapter import first_matrices, make_plain
from engines.finetune.stage import base_record, load_model, refuse_changed_template, sample, save_extras
from engines.forward.arrangement import PADDED, Arrangement, arrange, arrange_as
from engines.labels.stage_rows import rules_of
from engines.labels.templates import chosen_template
from engines.labels.vocabulary import view_of
from engines.preference.reference import BASE, PREFERENCE_JSON, load_reference, load_start, reference_of
from engines.preference.rows import HeldOut, PairDataset, collator, load_train, load_val
from engines.preference.trainer import PreferenceTrainer, settings_of
from engines.training.beginning import use_first_start
from engines.training.inputs import input_folder
from engines.training.precision import precision_of_adapter
from engines.training.saves.parts import save_model
from engines.training.session import Session
from engines.training.start import set_up_process
from engines.training.task import Method, Task
from recipes.stages.dpo import DpoStage, PreferenceFields


def run(ctx: StageContext[PreferenceFields]) -> StageResult:
    """Train an adapter, or all weights of the model, on pairs of answers.

    Raises:
        OperatorError: the model or the pairs cannot be used.
    """
    stage = ctx.stage
    set_up_process(stage)
    use_first_start(ctx)
    ctx.phase("loading")
    base = input_folder(ctx.inputs["model"])
    data = source_of_stage(stage, ctx.inputs["data"].path, ctx.inputs["data"].name)
    precision = precision_of_adapter(ctx, stored_narrow=stored_in_bfloat16(base))
    model, tokenizer = load_model(ctx, base, precision)
    ctx.phase("tokenizing")
    template = chosen_template(stage.chat_template)
    refuse_changed_template(ctx, template)
    added = [] if template is None else use_template(model, tokenizer, template)
    rules = rules_of(stage, stage.max_length, ctx.first_start)
    view = view_of(tokenizer)
    pairs = load_train(ctx, data, view, rules)
    val = load_val(ctx, data, view, rules)
    set_seed(stage.seed)
    trained = add_adapter(model, stage, base, added, ctx.warn) if isinstance(stage, DpoStage) else model
    first = first_matrices(trained) if isinstance(stage, DpoStage) and stage.takes_from_base else None
    start = load_start(ctx, trained)
    longest = max(pairs.longest, 0 if val is None else val.longest)
    way = arrange(trained, longest=longest) if stage.padding_free else PADDED
    ends = trained_ends(pairs.answers(), tokenizer, max_length=stage.max_length)
    changed = None if template is None else tokenizer
    record = base_record(stage, base, ctx.inputs["model"], precision)
    complete = partial(_complete, partial(save_extras, base, ends, changed, record), start)
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    collate = collator(pad_id or 0)
    reference: Any = None if isinstance(stage, DpoStage) else load_reference(ctx, base, start, added)
    make = partial(_trainer, ctx, trained, reference, pairs, val, collate, tokenizer, start, way)
    task = Task(
        model=trained,
        dataset=pairs,
        collate=collate,
        examples=len(pairs),
        save_tokenizer=complete,
        sample=partial(sample, ctx, trained, tokenizer, view, rules),
        bf16=precision.bf16,
        fp16=precision.fp16,
        arrangement=way,
        method=Method(
            trainer=make,
            arguments=DPOConfig,
            more=settings_of(stage),
            evaluate=None
            if val is None
            else lambda trainer, fitting: trainer.score(trainer.held_out, collate, stage, fitting),
        ),
    )
    session = Session(ctx, task)
    session.run()
    return _saved(ctx, session, first, complete, pairs)


def _saved(
    ctx: StageContext[PreferenceFields],
    session: Session,
    first: dict[str, torch.Tensor] | None,
    complete: Callable[[Path], None],
    pairs: PairDataset,
) -> StageResult:
    """Write the output of a finished training."""
    ctx.phase("saving")
    save_model(session.task.model, ctx.out)
    if ctx.world.is_first:
        if first is not None:
            make_plain(ctx.out, first)
        complete(ctx.out)
    counted = {**pairs.counts.metrics(), "skipped_rows": pairs.read.refused}
    metrics = {**{name: float(value) for name, value in counted.items()}, **session.result()}
    made: Literal["adapter", "model"] = "adapter" if isinstance(ctx.stage, DpoStage) else "model"
    return StageResult(metrics=metrics, artifacts=[Artifact(name=ctx.stage_name, kind=made, path=".")])


def _trainer(
    ctx: StageContext[PreferenceFields],
    model: Any,
    reference: Any,
    pairs: PairDataset,
    val: HeldOut | None,
    collate: Any,
    tokenizer: Any,
    start: str,
    way: Arrangement,
    arguments: DPOConfig,
) -> PreferenceTrainer:
    stage = ctx.stage
    if isinstance(stage, DpoStage):
        reference = reference_of(model, is_base=start == BASE and stage.begins_as_base)
    else:
        arrange_as(reference, way)
    trainer = PreferenceTrainer(model, arguments, pairs, collate, tokenizer, reference, way)
    trainer.held_out = val
    if stage.precompute_ref_log_probs:
        ctx.phase("computing the reference")
        pairs.items = trainer.with_references(pairs.items, collate, stage.per_device_train_batch_size)
        if val is not None:
            batches = [trainer.with_references(batch, collate, len(batch)) for batch in val.batches]
            trainer.held_out = HeldOut(batches, val.protocol)
        trainer.use_references_of_pairs()
    return trainer


def _complete(save: Any, start: str, target: Path) -> None:
    """Complete an output folder, and say in it what the model was compared with."""
    save(target)
    (target / PREFERENCE_JSON).write_text(json.dumps({"reference": start}) + "\n")
