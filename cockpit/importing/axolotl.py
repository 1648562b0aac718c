"""What the keys of an Axolotl configuration mean in a recipe.

Facts: `utils/schemas/*.py` and `core/builders/base.py` of Axolotl.
"""

from __future__ import annotations

from typing import Any

from cockpit.importing.axolotl_data import EntryError, source_of
from cockpit.importing.axolotl_keys import OWN
from cockpit.importing.config import Entry
from cockpit.importing.draft import (
    DATA,
    TUNED,
    Draft,
    different,
    flag,
    is_off,
    names,
    number,
    plain,
    text,
    to,
    whole,
)
from cockpit.importing.meanings import (
    ALL_WEIGHTS_SAYS,
    FULL,
    METHOD_PART,
    QUANTIZED,
    chosen_too,
    loftq,
    losses,
    pattern,
    weights_of_losses,
)
from cockpit.importing.sources import ONE_SOURCE, place, put_source
from cockpit.importing.templates import AXOLOTL_TEMPLATES, chat_template, template_file
from cockpit.importing.training_arguments import (
    EPOCHS,
    RULES,
    SPEED,
    best_at_end,
    evaluating,
    held_out,
    precision,
    saving,
    schedule,
    seeds,
    steps,
)
from recipes.stages.adapter.fields import ALL_LINEAR

PROGRAM = "Axolotl"
SPEEDS = frozenset(
    {
        "axolotl.integrations.liger.LigerPlugin",
        "axolotl.integrations.cut_cross_entropy.CutCrossEntropyPlugin",
    }
)
"""Plugins that compute the same numbers faster."""


KNOWN = (
    *RULES, *OWN, "base_model", "adapter", "rl", "trl", "bnb_config_kwargs", "float32", "dpo_loss_type",
    "dpo_loss_weights", "rpo_alpha", "lora_model_dir", "lora_target_modules", "lora_target_linear", "datasets",
    "pretraining_dataset", "val_set_size", "dataset_exact_deduplication", "chat_template", "chat_template_jinja",
    "special_tokens", "train_on_inputs", "batch_size", "lr_scheduler", "lr_scheduler_kwargs", "cosine_min_lr_ratio",
    "warmup_steps", "warmup_ratio", "save_steps", "save_strategy",
    "early_stopping_patience", "load_best_model_at_end", "saves_per_epoch", "eval_steps", "eval_strategy",
    "evaluation_strategy", "evals_per_epoch", "bf16", "fp16", "bfloat16", "seed", "max_steps",
    "gradient_checkpointing", "plugins",
)  # fmt: skip
"""Every key that has a meaning here."""


def convert(draft: Draft) -> None:
    """Give every key its outcome, and fill the stages."""
    _method(draft)
    loftq(draft, "peft_init_lora_weights")
    draft.apply(OWN | {key: rule for key, rule in RULES.items() if key not in OWN})
    steps(draft)
    schedule(draft, "lr_scheduler", "cosine_min_lr_ratio")
    _when(draft)
    _quantized(draft)
    _pairs(draft)
    precision(draft, default="base_model" in draft.config.entries, pure="bfloat16")
    seeds(draft)
    _checkpointing(draft)
    draft.apply({"base_model": to("model", lambda value: place(draft, text(value)))})
    draft.apply(
        {"lora_model_dir": to("start_from", lambda value: place(draft, text(value)))}
        if not draft.all_weights
        else {"lora_model_dir": different("merge the adapter first, and name the merged model")}
    )
    _layers(draft)
    _batch(draft)
    _scored(draft)
    held_out(draft, "val_set_size")
    _duplicates(draft)
    chat_template(draft, "chat_template", AXOLOTL_TEMPLATES)
    template_file(draft, "chat_template_jinja")
    _special_tokens(draft)
    _plugins(draft)
    _data(draft)
    if draft.config.entries.keys() & {"base_model", "adapter"}:
        draft.default(f"{TUNED}.per_device_train_batch_size", 1, "micro_batch_size")
        if draft.get(f"{TUNED}.lr_scheduler_type") != "constant":
            draft.default(f"{TUNED}.warmup_steps", 0.03, "warmup_ratio")
    draft.finish(KNOWN)


def _method(draft: Draft) -> None:
    """`rl`, and `adapter`: without one, Axolotl trains all weights."""
    kind = draft.take("rl")
    pairs = kind is not None and kind.value in ("dpo", "ipo")
    if kind is not None and pairs:
        draft.choose(pairs=True, all_weights=False)
        draft.note(kind, "imported", says="a dpo stage trains on pairs of answers")
        if kind.value == "ipo":
            draft.put(f"{TUNED}.loss_type", ["ipo"])
    elif kind is not None:
        off = is_off(kind.value)
        draft.note(kind, "unneeded" if off else "missing", says="answers are trained, as here" if off else METHOD_PART)
    entry = draft.waiting.get("adapter")
    if entry is None or is_off(entry.value):
        _all_weights(draft, entry, pairs=pairs)
    elif entry.value in ("lora", "qlora"):
        draft.note(entry, "imported", says="the stage trains LoRA")
        if entry.value == "qlora" and draft.config.entries.get("load_in_4bit") is None:
            draft.put(f"{TUNED}.load_in_4bit", True)
    elif draft.take("adapter") is not None:
        draft.note(entry, "missing", says=FULL)


def _all_weights(draft: Draft, entry: Entry | None, *, pairs: bool) -> None:
    if "base_model" not in draft.config.entries:
        if entry is not None:
            draft.note(entry, "unset")
        return
    draft.choose(pairs=pairs, all_weights=True)
    says = f"without an adapter, Axolotl trains all weights: {ALL_WEIGHTS_SAYS}"
    draft.note(entry or Entry("adapter", None, 0), "imported", says=says)


def _quantized(draft: Draft) -> None:
    """The arguments of a base model in 4 bits; Axolotl quantizes the scales too."""
    draft.apply_nested("bnb_config_kwargs", QUANTIZED)
    if draft.get(f"{TUNED}.load_in_4bit"):
        draft.default(f"{TUNED}.bnb_4bit_use_double_quant", True)
    wide = draft.take("float32")
    if wide is not None and is_off(wide.value):
        draft.note(wide, "unneeded", says="asks for what a recipe does anyway")
    elif wide is not None:
        draft.set(wide, f"{TUNED}.bf16", False)


def _pairs(draft: Draft) -> None:
    """What `rl: dpo` reads besides its plain keys."""
    losses(draft, "dpo_loss_type")
    weights_of_losses(draft, "dpo_loss_weights")
    chosen_too(draft, "rpo_alpha")
    draft.apply_nested("trl", {"beta": to("beta", number)})


def _when(draft: Draft) -> None:
    saving(draft, None)
    evaluating(draft, "eval_strategy", "evaluation_strategy")
    for key, name in (("saves_per_epoch", "save"), ("evals_per_epoch", "eval")):
        if draft.value(key) == 1:
            draft.apply({key: to(f"{name}_strategy", lambda _: "epoch")})
        else:
            draft.apply({key: different(f"{name}_steps is not set: {EPOCHS}")})
    chosen = draft.value("saves_per_epoch") or draft.value("save_strategy") or draft.get(f"{TUNED}.save_steps")
    if chosen is None and "base_model" in draft.config.entries:
        draft.default(f"{TUNED}.save_strategy", "epoch")
    best_at_end(draft)


def _checkpointing(draft: Draft) -> None:
    entry = draft.take("gradient_checkpointing")
    if entry is None:
        return
    name = f"{TUNED}.gradient_checkpointing"
    if entry.value in ("offload", "offload_disk", "unsloth", "auto"):
        draft.set(entry, name, True, "activations are computed again, and not moved to other memory")
    else:
        draft.apply({"gradient_checkpointing": to("gradient_checkpointing", flag)})


def _layers(draft: Draft) -> None:
    """All linear layers, or those named; named ones are added to all, which already has them."""
    entry = draft.take("lora_target_linear")
    if entry is not None and not is_off(entry.value):
        draft.set(entry, f"{TUNED}.target_modules", [ALL_LINEAR])
    elif entry is not None:
        draft.note(entry, "unneeded", says="lora_target_modules decides")
    named = draft.take("lora_target_modules")
    if named is None:
        return
    if draft.get(f"{TUNED}.target_modules"):
        draft.note(named, "unneeded", says="all linear layers are trained")
    else:
        draft.apply({"lora_target_modules": to("target_modules", pattern)})


def _batch(draft: Draft) -> None:
    """`batch_size` is the whole batch of one step, of which the accumulation follows."""
    read = draft.read("batch_size", whole)
    if read is None:
        return
    entry, batch = read
    rows = draft.get(f"{TUNED}.per_device_train_batch_size") or 1
    if draft.get(f"{TUNED}.gradient_accumulation_steps"):
        draft.note(entry, "unneeded", says="gradient_accumulation_steps decides")
    elif batch % rows:
        draft.note(entry, "different", says=f"not a multiple of micro_batch_size, which is {rows}")
    else:
        draft.set(entry, f"{TUNED}.gradient_accumulation_steps", batch // rows)


def _scored(draft: Draft) -> None:
    entry = draft.take("train_on_inputs")
    if entry is not None and is_off(entry.value):
        draft.note(entry, "unneeded", says="answers are scored, as here")
    elif entry is not None:
        draft.set(entry, f"{TUNED}.train_on", "all")


def _duplicates(draft: Draft) -> None:
    entry = draft.take("dataset_exact_deduplication")
    if entry is not None and is_off(entry.value):
        draft.note(entry, "unneeded", says="asks for what a recipe does anyway")
    elif entry is not None:
        draft.set(entry, f"{DATA}.duplicates", "drop")


def _special_tokens(draft: Draft) -> None:
    entry = draft.take("special_tokens")
    if entry is None:
        return
    given = entry.value if isinstance(entry.value, dict) else {}
    rest = {name: value for name, value in given.items() if name != "pad_token" and not is_off(value)}
    if isinstance(entry.value, dict) and not rest:
        draft.note(entry, "unneeded", says="padding is not scored, so its token does not matter")
    else:
        says = f"the tokenizer's own tokens are used, not {', '.join(map(plain, rest)) or plain(entry.value)}"
        draft.note(entry, "different", says=says)


def _plugins(draft: Draft) -> None:
    read = draft.read("plugins", names)
    if read is None:
        return
    entry, found = read
    rest = [name for name in found if name not in SPEEDS]
    if rest:
        draft.note(entry, "different", says=f"code of plugins is never executed: {', '.join(map(plain, rest))}")
    else:
        draft.note(entry, "unneeded", says=SPEED)


def _data(draft: Draft) -> None:
    """The first data set; a stage has one source."""
    for key in ("datasets", "pretraining_dataset"):
        entry = draft.take(key)
        if entry is None:
            continue
        found: list[Any] = entry.value if isinstance(entry.value, list) else [entry.value]
        if draft.get(f"{TUNED}.data") or draft.get(f"{DATA}.data"):
            draft.note(entry, "different", says=ONE_SOURCE)
            continue
        first = {"path": found[0], "type": "completion"} if isinstance(found[0], str) else found[0]
        if isinstance(first, dict) and key == "pretraining_dataset":
            first = {"type": "completion", "field": first.get("text_column"), **first}
            first = {name: value for name, value in first.items() if name not in ("text_column", "skip")}
        try:
            source = source_of(draft, (key, 0), first)
        except EntryError as error:
            draft.note(entry, "missing", says=str(error))
            continue
        problem = put_source(draft, source)
        if len(found) > 1:
            others = [plain(item.get("path") if isinstance(item, dict) else item) for item in found[1:6]]
            problem = problem or f"{ONE_SOURCE}: left out are {', '.join(others)}{', …' if len(found) > 6 else ''}"
        words = ("data", "format", "columns", "ignore_keys", "train_on")
        fields = [f"{stage}.{name}" for stage, table in draft.stages.items() for name in table if name in words]
        draft.note(entry, "different" if problem else "imported", fields, problem)
