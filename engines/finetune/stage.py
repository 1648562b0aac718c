"""Fine-tuning: a model and conversations in, a LoRA adapter folder or a model folder out.

It uses `transformers.Trainer` with PEFT, not TRL's SFTTrainer: Cockpit tokenizes the rows itself, with labels on
answers only, so it needs nothing of TRL's data preparation. SFTTrainer's loss always uses a fused head that is slower
on a CPU and computes unused entropy and accuracy at each step. The mixin supports both.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import set_seed

from engines.artifacts.adapter_folder import BASE_JSON
from engines.artifacts.generation_config import write_generation_config
from engines.chat.ends import trained_ends
from engines.context import Artifact, Input, StageContext, StageResult
from engines.data.door import source_of_stage
from engines.data.shards import is_tokens_folder
from engines.data.tokenizer_files import CHAT_TEMPLATE_FILE, NAMED_TEMPLATES, copy_tokenizer
from engines.data.windows import collate_windows
from engines.events.results import SampledText
from engines.files import read_regular_text
from engines.finetune import unsloth_model
from engines.finetune.added_tokens import use_template
from engines.finetune.model import (
    add_adapter,
    compute_dtype,
    load_base,
    quantization_of,
    require_four_bits,
    stored_in_bfloat16,
)
from engines.finetune.plain_adapter import first_matrices, make_plain
from engines.finetune.rows import (
    ExampleDataset,
    PackedDataset,
    collator,
    load_train,
    load_val,
    one_sequence_of_packs,
    refuse_left_out_rows,
)
from engines.finetune.token_windows import counts_of, load_windows, val_windows
from engines.forward.arrangement import PADDED, arrange, is_causal
from engines.forward.joining import most_tokens
from engines.forward.order import grouped_by_length
from engines.json_text import read_object
from engines.labels.label import prompt_ids
from engines.labels.row import LabelRules
from engines.labels.stage_rows import rules_of
from engines.labels.templates import NamedTemplate, chosen_template
from engines.labels.vocabulary import TokenizerView, view_of
from engines.training.beginning import continued_checkpoint, use_first_start
from engines.training.inputs import input_folder
from engines.training.precision import TYPES, Precision, precision_of_adapter
from engines.training.sampling import greedy_text
from engines.training.saves.parts import save_model
from engines.training.session import Session
from engines.training.start import set_up_process
from engines.training.task import Task
from recipes import quantities
from recipes.problems import OperatorError
from recipes.stages.finetune import FinetuneFields, FinetuneStage

SAMPLE_TOKENS = 128
"""Longest answer to a requested sample."""


def run(ctx: StageContext[FinetuneFields]) -> StageResult:
    """Train an adapter, or all weights of the model.

    Raises:
        OperatorError: the model or the messages cannot be used.
    """
    set_up_process(ctx.stage)
    use_first_start(ctx)
    ctx.phase("loading")
    base = input_folder(ctx.inputs["model"])
    data = source_of_stage(ctx.stage, ctx.inputs["data"].path, ctx.inputs["data"].name)
    precision = precision_of_adapter(ctx, stored_narrow=stored_in_bfloat16(base))
    model, tokenizer = load_model(ctx, base, precision)
    ctx.phase("tokenizing")
    if is_tokens_folder(data.place):
        return _on_tokens(ctx, data.place, base, model, tokenizer, precision)
    template = chosen_template(ctx.stage.chat_template)
    refuse_changed_template(ctx, template)
    added = [] if template is None else use_template(model, tokenizer, template)
    rules = rules_of(ctx.stage, ctx.stage.max_length, ctx.first_start)
    view = view_of(tokenizer)
    dataset = load_train(ctx, data, view, rules)
    val = load_val(ctx, data, view, rules)
    set_seed(ctx.stage.seed)
    stage = ctx.stage
    trained = add_adapter(model, stage, base, added, ctx.warn) if isinstance(stage, FinetuneStage) else model
    first = first_matrices(trained) if isinstance(stage, FinetuneStage) and stage.takes_from_base else None
    own_loss = stage.backend == "unsloth" and unsloth_model.on_accelerator()
    way = (
        arrange(trained, longest=max(dataset.longest, val.longest if val else 0), as_it_is=own_loss)
        if ctx.stage.padding_free
        else PADDED
    )
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    ends = trained_ends(dataset.pairs(), tokenizer, max_length=ctx.stage.max_length)
    changed = None if template is None else tokenizer
    extras = partial(save_extras, base, ends, changed, base_record(stage, base, ctx.inputs["model"], precision))
    packed = _packed(ctx, dataset)
    task = Task(
        model=trained,
        dataset=packed or dataset,
        collate=one_sequence_of_packs if packed else collator(pad_id or 0, padded=way.way == "padded"),
        examples=len(packed or dataset),
        order=_order(stage, dataset),
        save_tokenizer=extras,
        val=val,
        sample=partial(sample, ctx, trained, tokenizer, view, rules),
        bf16=precision.bf16,
        fp16=precision.fp16,
        arrangement=way,
        most_tokens=_most_tokens(stage, packed or dataset) if way.way == "one sequence" and not own_loss else None,
        own_loss=own_loss,
    )
    counted = {**dataset.counts.metrics(), "skipped_rows": dataset.read.refused, "examples": len(dataset)}
    return _train(ctx, task, first, extras, counted)


def _train(
    ctx: StageContext[FinetuneFields],
    task: Task,
    first: dict[str, torch.Tensor] | None,
    extras: Callable[[Path], None],
    counted: dict[str, int],
) -> StageResult:
    session = Session(ctx, task)
    session.run()
    ctx.phase("saving")
    save_model(task.model, ctx.out)
    if ctx.world.is_first:
        if first is not None:
            make_plain(ctx.out, first)
        extras(ctx.out)
    metrics = {**{name: float(value) for name, value in counted.items()}, **session.result()}
    metrics["examples"] = float(counted["examples"])
    made: Literal["adapter", "model"] = "adapter" if isinstance(ctx.stage, FinetuneStage) else "model"
    return StageResult(metrics=metrics, artifacts=[Artifact(name=ctx.stage_name, kind=made, path=".")])


def _on_tokens(
    ctx: StageContext[FinetuneFields], data: Path, base: Path, model: Any, tokenizer: Any, precision: Precision
) -> StageResult:
    """Continued pretraining: full windows of the token shards, without labels of turns."""
    stage = ctx.stage
    dataset = load_windows(ctx, data, base, model)
    val = val_windows(ctx, data)
    set_seed(stage.seed)
    trained = add_adapter(model, stage, base, warn=ctx.warn) if isinstance(stage, FinetuneStage) else model
    first = first_matrices(trained) if isinstance(stage, FinetuneStage) and stage.takes_from_base else None
    record = base_record(stage, base, ctx.inputs["model"], precision)
    extras = partial(save_extras, base, [], None, record)
    task = Task(
        model=trained,
        dataset=dataset,
        collate=collate_windows,
        examples=len(dataset),
        save_tokenizer=extras,
        val=val,
        sample=partial(_continue, ctx, trained, tokenizer),
        bf16=precision.bf16,
        fp16=precision.fp16,
        full=True,
        own_loss=stage.backend == "unsloth" and unsloth_model.on_accelerator(),
    )
    return _train(ctx, task, first, extras, counts_of(dataset, stage.max_length))


def load_model(ctx: StageContext[FinetuneFields], base: Path, precision: Precision) -> tuple[Any, Any]:
    """The model and the tokenizer that the training begins with.

    Weights that are trained are float32, because an update is smaller than bfloat16's steps. So are those that an
    initialization takes a part out of: rounding what is left would change the model that a merge gives.

    A full model continues from the folder of its checkpoint: what transformers loads from it is what it saved, also
    where it stores a model's tensors under other names than in memory.
    """
    stage = ctx.stage
    frozen = isinstance(stage, FinetuneStage) and not stage.takes_from_base
    dtype = TYPES[precision.base] if frozen else torch.float32
    point = None if isinstance(stage, FinetuneStage) else ctx.resume or continued_checkpoint(ctx)
    quantization = quantization_of(stage, precision)
    model, tokenizer = load_base(
        base,
        dtype=dtype,
        warn=ctx.warn,
        quantization=quantization,
        weights=None if point is None else point.path,
        load=partial(unsloth_model.load, stage=stage, dtype=dtype) if stage.backend == "unsloth" else None,
    )
    if quantization is not None:
        require_four_bits(model, base)
    elif stage.backend == "hf" and torch.cuda.is_available():
        model.to("cuda")  # what is tried with the model before its training is tried on the device of its training
    if not is_causal(model):
        raise OperatorError(
            f"model — {base} is not a causal language model: a later token changes the logits of earlier ones",
            "name a model that generates text; an encoder such as BERT does not",
        )
    return model, tokenizer


def _packed(ctx: StageContext[FinetuneFields], dataset: ExampleDataset) -> PackedDataset | None:
    """The sequences of a packed training; None where each row is an example of its own."""
    if not ctx.stage.packing:
        return None
    refuse_left_out_rows(ctx, dataset)
    packed = PackedDataset(dataset, ctx.stage.max_length)
    fill = sum(dataset.lengths) / (len(packed) * ctx.stage.max_length)
    ctx.phase(f"packed {len(dataset)} rows into {len(packed)} sequences, {quantities.percent(fill)} full")
    return packed


def _most_tokens(stage: FinetuneFields, dataset: ExampleDataset | PackedDataset) -> int:
    return most_tokens(dataset.lengths, stage.per_device_train_batch_size)


def _order(stage: FinetuneFields, dataset: ExampleDataset) -> Callable[[int], list[int]] | None:
    """The order of an epoch's rows; None for the Trainer's own, which is random."""
    if stage.train_sampling_strategy == "random":
        return None
    window = stage.rows_per_step
    return partial(grouped_by_length, dataset.lengths, window, stage.seed)


def refuse_changed_template(ctx: StageContext[FinetuneFields], template: NamedTemplate | None) -> None:
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


def sample(
    ctx: StageContext[FinetuneFields],
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


def _continue(ctx: StageContext[FinetuneFields], model: Any, tokenizer: Any, step: int, prompt: str) -> bool:
    """Continue the prompt as text, greedily; False without one."""
    if not prompt:
        return False
    ids = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False).input_ids.to(model.device)
    text = greedy_text(model, tokenizer, ids, SAMPLE_TOKENS)
    ctx.emit(SampledText(stage=ctx.stage_name, attempt=ctx.attempt, step=step, prompt=prompt, text=text))
    return True


def base_record(stage: FinetuneFields, base: Path, given: Input, precision: Precision) -> dict[str, Any] | None:
    """The content of an adapter's `base.json`; None for a model, which needs no base."""
    if not isinstance(stage, FinetuneStage):
        return None
    record: dict[str, Any] = {
        "path": str(base.resolve()),
        "manifest_sha256": given.manifest_sha256,
        "method": given.method,
    }
    if stage.load_in_4bit:
        record["quantization"] = {
            "method": "bitsandbytes",
            "bnb_4bit_quant_type": stage.bnb_4bit_quant_type,
            "bnb_4bit_use_double_quant": stage.bnb_4bit_use_double_quant,
            "bnb_4bit_compute_dtype": compute_dtype(stage, precision),
            "llm_int8_skip_modules": list(stage.llm_int8_skip_modules),
        }
    return record


def save_extras(base: Path, ends: list[int], changed: Any | None, record: dict[str, Any] | None, target: Path) -> None:
    """Complete an adapter folder or a model folder: add the tokenizer, the tokens that end an answer, and for an
    adapter `base.json`.

    The tokenizer is the base model's, or `changed` where another chat template was chosen.

    `ends` are the tokens that the answers of this training end with. A base model that never saw a chat may not have
    them among its own, and a program that loads the adapter would wait for another token that never comes.
    """
    copy_tokenizer(target, base)
    if changed is not None:
        shutil.rmtree(target / NAMED_TEMPLATES, ignore_errors=True)
        changed.save_pretrained(str(target))
    write_generation_config(target, base, read_object(base / "config.json"), ends)
    if record is not None:
        (target / BASE_JSON).write_text(json.dumps(record, indent=1) + "\n")
