"""What the keys of LLaMA-Factory's second kind of configuration (its `v1`) mean in a recipe.

Facts: `v1/config/*.py`, `v1/core/data_engine.py` and `v1/core/base_trainer.py` of LLaMA-Factory.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cockpit.importing.config import read_config
from cockpit.importing.draft import (
    MERGED,
    TUNED,
    Draft,
    Outcome,
    Rule,
    different,
    each,
    flag,
    is_off,
    missing,
    names,
    number,
    plain,
    switch,
    text,
    to,
    unneeded,
    whole,
)
from cockpit.importing.llama_factory import targets
from cockpit.importing.llama_factory_data import EntryError
from cockpit.importing.meanings import (
    ALL_WEIGHTS_SAYS,
    BITSANDBYTES,
    FULL,
    GENERATION,
    OTHER_METHOD,
    REFERENCE,
    bits,
    chosen_too,
    losses,
)
from cockpit.importing.sources import ONE_SOURCE, Source, find_path, place, put_source
from cockpit.importing.templates import LLAMA_FACTORY_TEMPLATES, chat_template, template_file
from cockpit.importing.training_arguments import (
    BY_LAUNCH,
    EPOCHS,
    RULES,
    SCHEDULES,
    SPEED,
    best_at_end,
    evaluating,
    precision,
    saving,
    seeds,
    steps,
)
from recipes.problems import OperatorError

OWN: dict[str, Rule] = {
    "cutoff_len": to("max_length", whole),
    "micro_batch_size": to("per_device_train_batch_size", whole),
    "model_class": missing("a finetune stage trains a causal language model", "llm"),
    "batching_strategy": different("a batch is that many rows", "normal", "padding_free"),
    "batching_workers": unneeded("rows are read in a stream"),
    **each("dp_size mp_replicate_size mp_shard_size", different(BY_LAUNCH, 1)),
    "cp_size": different(BY_LAUNCH, 1),
    **each("cp_mode dist_timeout", unneeded("launch says over how many devices a stage trains")),
    **each("flash_attn init_config", unneeded(SPEED)),
    "save_ckpt_as_hf": unneeded("a checkpoint has all that an exact resume needs"),
    "pref_beta": to("beta", number),
    "ld_alpha": to("ld_alpha", number),
    "dpo_label_smoothing": different("the loss sigmoid is not smoothed; robust is, by label_smoothing"),
    "simpo_gamma": unneeded(OTHER_METHOD),
    "ref_model": different(REFERENCE),
    **each("sample_backend max_new_tokens temperature top_p top_k", unneeded(GENERATION)),
    "eval_dataset": different("the val split is a file of its own beside the training rows (val.jsonl), or held out"),
}
"""Keys that need no look at other keys."""

LORA: dict[str, Rule] = {
    "name": missing(FULL, "lora", "full"),
    "r": to("r", whole),
    "lora_alpha": to("lora_alpha", number),
    "lora_dropout": to("lora_dropout", number),
    "target_modules": to("target_modules", targets),
    "use_rslora": to("use_rslora", flag),
    "use_dora": switch("use_dora", flag),
    "modules_to_save": switch("modules_to_save", names),
    **each("freeze_trainable_layers freeze_trainable_modules freeze_extra_modules", different("belongs to freeze")),
}
"""Keys inside `peft_config`."""

EXPORT: dict[str, Rule] = {
    "name": unneeded("a merge reads the adapter's own settings"),
    "export_dir": to(f"{MERGED}.output_dir", text),
    **each("export_size infer_dtype", unneeded("a merge writes safetensors, one tensor after another")),
}
"""Keys inside the `peft_config` of a merge."""

NESTED: dict[str, dict[str, Rule]] = {
    "quant_config": {
        "name": different(BITSANDBYTES, "bnb", "auto"),
        "quantization_bit": switch("load_in_4bit", bits),
        "quantization_type": to("bnb_4bit_quant_type", text),
        "double_quantization": to("bnb_4bit_use_double_quant", flag),
    },
    "kernel_config": each("name include_kernels chunk_size", unneeded(SPEED)),
    "dist_config": each("name dcp_path ep_size ep_dispatcher", different(BY_LAUNCH)),
    "optim_config": each(
        "name lr wd momentum nesterov ns_steps adamw_betas adamw_eps", different("the optimizer is AdamW", "adamw")
    ),
}

KNOWN = (
    *RULES, *OWN, *NESTED, "pref_loss", "pref_ftx", "save_epochs", "peft_config", "lr_scheduler_config",
    "model", "template", "custom_chat_template",
    "train_dataset", "global_batch_size", "bf16", "seed", "max_steps", "save_steps", "load_best_model_at_end",
    "enable_activation_checkpointing",
)  # fmt: skip
"""Every top-level key that has a meaning here."""
SIGNS = frozenset(
    {"peft_config", "train_dataset", "dist_config", "kernel_config", "quant_config", "model_class", "model"}
)
"""Keys of which this kind of file has two."""


def convert(draft: Draft) -> None:
    """Give every key its outcome, and fill the stages."""
    peft = draft.value("peft_config")
    if isinstance(peft, dict) and not is_off(peft.get("export_dir")):
        _merge(draft)
    else:
        _train(draft)
    draft.finish(KNOWN)


def _merge(draft: Draft) -> None:
    draft.apply({"model": to(f"{MERGED}.model", lambda value: place(draft, text(value)))})
    rules = EXPORT | {"adapter_name_or_path": to(f"{MERGED}.adapter", lambda value: place(draft, text(value)))}
    draft.apply_nested("peft_config", rules)
    draft.apply(each("model_class trust_remote_code", unneeded("a merge reads the weights")))


def _train(draft: Draft) -> None:
    peft = draft.value("peft_config")
    full = not isinstance(peft, dict) or peft.get("name") == "full"
    pairs = not {"pref_loss", "pref_beta"}.isdisjoint(draft.config.entries)
    draft.choose(pairs=pairs, all_weights=full)
    draft.apply(OWN | {key: rule for key, rule in RULES.items() if key not in OWN})
    steps(draft)
    saving(draft, None)
    once = draft.value("save_epochs") == 1
    draft.apply({"save_epochs": to("save_strategy", lambda _: "epoch") if once else different(EPOCHS)})
    evaluating(draft)
    best_at_end(draft)
    precision(draft, default=True)
    seeds(draft)
    draft.apply({"enable_activation_checkpointing": to("gradient_checkpointing", flag)})
    draft.apply({"model": to("model", lambda value: place(draft, text(value)))})
    start = {"adapter_name_or_path": to("start_from", lambda value: place(draft, text(value)))}
    draft.apply_nested("peft_config", LORA | start)
    if not isinstance(peft, dict):
        says = f"without it, LLaMA-Factory trains all weights: {ALL_WEIGHTS_SAYS}"
        draft.outcomes.append(Outcome("peft_config", None, 0, "imported", (), says))
    losses(draft, "pref_loss")
    chosen_too(draft, "pref_ftx", "its mean counts tokens alike; LLaMA-Factory's counts answers alike")
    for key, rules in NESTED.items():
        draft.apply_nested(key, rules)
    _schedule(draft)
    _batch(draft)
    chat_template(draft, "template", LLAMA_FACTORY_TEMPLATES)
    template_file(draft, "custom_chat_template")
    _data(draft)
    if draft.get(f"{TUNED}.load_in_4bit"):
        draft.default(f"{TUNED}.bnb_4bit_use_double_quant", True)
    for name, value, key in (
        ("max_length", 2048, "cutoff_len"),
        ("r", 8, ""),
        ("lora_alpha", 16.0, ""),
        ("lora_dropout", 0.05, ""),
        ("target_modules", targets("all"), ""),
        ("per_device_train_batch_size", 1, "micro_batch_size"),
        ("learning_rate", 1e-4, ""),
        ("num_train_epochs", 3.0, ""),
        ("lr_scheduler_type", "constant", "lr_scheduler_config"),
        ("gradient_checkpointing", True, "enable_activation_checkpointing"),
    ):
        draft.default(f"{TUNED}.{name}", value, key)


def _schedule(draft: Draft) -> None:
    entry = draft.take("lr_scheduler_config")
    if entry is None:
        return
    given = entry.value if isinstance(entry.value, dict) else {"name": entry.value}
    name = str(given.get("name"))
    if name in SCHEDULES and set(given) <= {"name"}:
        draft.set(entry, f"{TUNED}.lr_scheduler_type", SCHEDULES[name])
    else:
        draft.note(
            entry, "different", says=f"lr_scheduler_type is left at its default; allowed: {', '.join(SCHEDULES)}"
        )


def _batch(draft: Draft) -> None:
    """`global_batch_size` is the whole batch of one step, of all devices."""
    read = draft.read("global_batch_size", whole)
    if read is None:
        return
    entry, batch = read
    rows = draft.get(f"{TUNED}.per_device_train_batch_size") or 1
    if batch % rows:
        draft.note(entry, "different", says=f"not a multiple of micro_batch_size, which is {rows}")
    else:
        draft.set(entry, f"{TUNED}.gradient_accumulation_steps", batch // rows)


def _data(draft: Draft) -> None:
    """A hub id, a path, or a YAML file of data sets, of which the first is taken."""
    read = draft.read("train_dataset", text)
    if read is None:
        return
    entry, value = read
    if not value.endswith((".yaml", ".yml")):
        problem = put_source(draft, Source(place(draft, value)))
        draft.note(entry, "different" if problem else "imported", [f"{TUNED}.data"], problem)
        return
    found = find_path(draft, value)
    if found is None:
        draft.note(
            entry, "different", says=f"{plain(value)} is not here, beside the file or above it; set data yourself"
        )
        return
    try:
        sets = read_config(found).entries
    except OperatorError as error:
        draft.note(entry, "different", says=error.message)
        return
    name, first = next((name, one.value) for name, one in sets.items())
    others = [plain(other) for other in sets if other != name]
    try:
        says = _put(draft, ("train_dataset", name), first)
    except EntryError as error:
        draft.note(entry, "missing", says=f"{plain(name)}: {error}")
        return
    if says or others:
        left = f"{ONE_SOURCE}: left out are {', '.join(others)}" if others else ""
        draft.note(entry, "different", [f"{TUNED}.data"], "; ".join(part for part in (says, left) if part))
    else:
        draft.note(entry, "imported", [f"{TUNED}.data", f"{TUNED}.format"])


def _put(draft: Draft, path: tuple[str, ...], entry: Any) -> str:
    """Put one data set into the stage; returns what is wrong with it.

    Raises:
        EntryError: no stage reads such data.
    """
    if not isinstance(entry, dict) or not isinstance(entry.get("path"), str):
        return f"{plain(path[-1])} has no path; set data yourself"
    for key, value in entry.items():
        if key == "split" and value == "train":
            continue
        if key not in ("path", "source", "converter"):
            draft.note_nested((*path, key), value, "different", "all rows of all files are read")
    formats = {"alpaca": "alpaca", "sharegpt": "sharegpt", None: "messages", "pair": "preference"}
    converter = entry.get("converter")
    if converter not in formats:
        raise EntryError(f"converter: got {plain(converter)}; allowed: alpaca, sharegpt, pair")
    if (converter == "pair") != (draft.on_pairs):
        raise EntryError("converter: pair, of rows with two answers, and pref_beta or pref_loss belong together")
    folder = "" if Path(entry["path"]).is_absolute() or entry.get("source") != "local" else "."
    source = Source(place(draft, entry["path"], *([folder] if folder else [])), formats[converter])
    return put_source(draft, source)
