"""Fine-tuning: a model and conversations in, a LoRA adapter folder out.

It uses `transformers.Trainer` with PEFT, not TRL's SFTTrainer: Cockpit tokenizes the rows itself, with labels on
answers only, so it needs nothing of TRL's data preparation. SFTTrainer's loss always uses a fused head that is slower
on a CPU and computes unused entropy and accuracy at each step. The mixin supports both.
"""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from engines.artifacts.adapter_folder import BASE_JSON
from engines.artifacts.generation_config import write_generation_config
from engines.chat.ends import trained_ends
from engines.context import Artifact, Input, StageContext, StageResult
from engines.data.door import source_of_stage
from engines.data.tokenizer_files import CHAT_TEMPLATE_FILE, NAMED_TEMPLATES, copy_tokenizer
from engines.events import SampledText
from engines.files import read_regular_text
from engines.finetune.added_tokens import use_template
from engines.finetune.model import add_adapter, load_base, stored_in_bfloat16
from engines.finetune.rows import collator, load_train, load_val
from engines.forward.arrangement import PADDED, arrange
from engines.json_text import read_object
from engines.labels.label import prompt_ids
from engines.labels.row import LabelRules
from engines.labels.stage_rows import rules_of
from engines.labels.templates import NamedTemplate, chosen_template
from engines.labels.vocabulary import TokenizerView, view_of
from engines.training.inputs import input_folder
from engines.training.precision import precision_of_adapter
from engines.training.sampling import greedy_text
from engines.training.saving import save_model
from engines.training.session import Session, Task
from engines.training.start import set_up_process
from recipes.problems import OperatorError
from recipes.stages.finetune import FinetuneStage

SAMPLE_TOKENS = 128
"""Longest answer to a requested sample."""


def run(ctx: StageContext[FinetuneStage]) -> StageResult:
    """Train an adapter.

    Raises:
        OperatorError: the model or the messages cannot be used.
    """
    set_up_process(ctx.stage)
    ctx.phase("loading")
    base = input_folder(ctx.inputs["model"])
    data = source_of_stage(ctx.stage, ctx.inputs["data"].path, ctx.inputs["data"].name)
    precision = precision_of_adapter(ctx, stored_narrow=stored_in_bfloat16(base))
    model, tokenizer = load_base(base, narrow=precision.narrow, warn=ctx.warn)
    ctx.phase("tokenizing")
    template = chosen_template(ctx.stage.chat_template)
    _refuse_changed_template(ctx, template)
    added = [] if template is None else use_template(model, tokenizer, template)
    rules = rules_of(ctx.stage, ctx.stage.max_length)
    view = view_of(tokenizer)
    dataset = load_train(ctx, data, view, rules)
    val = load_val(ctx, data, view, rules)
    set_seed(ctx.stage.seed)
    adapted = add_adapter(model, ctx.stage, added)
    way = arrange(adapted, longest=dataset.longest) if ctx.stage.padding_free else PADDED
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    ends = trained_ends(dataset.pairs(), tokenizer, max_length=ctx.stage.max_length)
    save_extras = partial(_save_extras, base, ctx.inputs["model"], ends, None if template is None else tokenizer)
    task = Task(
        model=adapted,
        dataset=dataset,
        collate=collator(pad_id or 0, padded=way.way == "padded"),
        examples=len(dataset),
        save_tokenizer=save_extras,
        val=val,
        sample=partial(_sample, ctx, adapted, tokenizer, view, rules),
        bf16=precision.bf16,
        arrangement=way,
    )
    session = Session(ctx, task)
    session.run()
    ctx.phase("saving")
    save_model(adapted, ctx.out)
    save_extras(ctx.out)
    counted = {**dataset.counts.metrics(), "skipped_rows": dataset.read.refused}
    metrics = {**{name: float(value) for name, value in counted.items()}, **session.result()}
    return StageResult(metrics=metrics, artifacts=[Artifact(name=ctx.stage_name, kind="adapter", path=".")])


def _refuse_changed_template(ctx: StageContext[FinetuneStage], template: NamedTemplate | None) -> None:
    """Refuse to resume with another text of the chosen chat template than the checkpoint has."""
    if ctx.resume is None or template is None:
        return
    file = ctx.resume.path / CHAT_TEMPLATE_FILE
    if file.is_file() and read_regular_text(file) != template.text:
        raise OperatorError(
            f"chat_template — {ctx.stage.chat_template} is not the template that step"
            f" {ctx.resume.step} was trained with",
            f"restore its text from {file}, or run the stage again from its start",
        )


def _sample(
    ctx: StageContext[FinetuneStage],
    model: Any,
    tokenizer: Any,
    view: TokenizerView,
    rules: LabelRules,
    step: int,
    prompt: str,
) -> bool:
    """Answer the prompt as a user's turn, greedily; False without one."""
    if not prompt:
        return False
    turns = [{"role": "user", "content": prompt}]
    ids = torch.tensor([prompt_ids(turns, [], view, rules)], device=model.device)
    text = greedy_text(model, tokenizer, ids, SAMPLE_TOKENS)
    ctx.emit(SampledText(stage=ctx.stage_name, attempt=ctx.attempt, step=step, prompt=prompt, text=text))
    return True


def _save_extras(base: Path, given: Input, ends: list[int], changed: Any | None, target: Path) -> None:
    """Complete an adapter folder: add the tokenizer, `base.json`, and the tokens that end an answer.

    The tokenizer is the base model's, or `changed` where another chat template was chosen.

    `ends` are the tokens that the answers of this training end with. A base model that never saw a chat may not have
    them among its own, and a program that loads the adapter would wait for another token that never comes.
    """
    copy_tokenizer(target, base)
    if changed is not None:
        shutil.rmtree(target / NAMED_TEMPLATES, ignore_errors=True)
        changed.save_pretrained(str(target))
    write_generation_config(target, base, read_object(base / "config.json"), ends)
    body = {"path": str(base.resolve()), "manifest_sha256": given.manifest_sha256, "method": given.method}
    (target / BASE_JSON).write_text(json.dumps(body, indent=1) + "\n")
