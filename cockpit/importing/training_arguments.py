"""Keys that have the same names in LLaMA-Factory, TRL and Unsloth, because all three take transformers' own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cockpit.importing.config import Entry
from cockpit.importing.draft import (
    DATA,
    TUNED,
    Draft,
    Rule,
    different,
    each,
    flag,
    is_off,
    number,
    plain,
    switch,
    text,
    to,
    unneeded,
    whole,
)
from recipes.stages.dpo import MEASURED
from recipes.stages.training import EVALUATED

JOURNAL = "every step is in the run's journal, and nothing is sent elsewhere"
FOLDERS = "a run has a folder of its own"
SPEED = "changes speed or memory, not what is trained"
BY_LAUNCH = (
    "launch.processes and launch.strategy say over how many devices a stage trains; a step has"
    " per_device_train_batch_size * gradient_accumulation_steps * processes rows"
)
DIVIDED = "the file has no number of processes: give --accelerate FILE, or set launch.processes too"
NO_UPLOAD = "nothing is uploaded"
PRECISION = "trained weights stay in 32 bits; with bf16, frozen ones are in bfloat16, and so is the computation"
BEST = "the last step is the result; the best checkpoint is kept, and can be exported"
EPOCHS = "steps are counted here; cockpit check shows how many an epoch has"
OPTIMIZERS = {
    "adamw_torch": "adamw_torch",
    "adamw_torch_fused": "adamw_torch_fused",
    "adamw_hf": "adamw_torch",
    "adamw_8bit": "adamw_8bit",
    "adamw_bnb_8bit": "adamw_8bit",
    "paged_adamw_8bit": "paged_adamw_8bit",
    "paged_adamw_32bit": "paged_adamw_32bit",
    "paged_adamw": "paged_adamw_32bit",
    "adafactor": "adafactor",
    "muon": "muon",
    "lion_32bit": "lion_32bit",
    "lion_8bit": "lion_8bit",
    "paged_lion_32bit": "paged_lion_32bit",
    "paged_lion_8bit": "paged_lion_8bit",
}
"""Optimizers under the names of transformers, older ones included."""


def reporters(value: Any) -> list[str]:
    """The programs of `report_to` that a stage can write for."""
    given = [str(one) for one in value] if isinstance(value, list) else [str(value)]
    if all(is_off(one) for one in given):
        return []
    unknown = [one for one in given if one not in {"tensorboard", "wandb", "mlflow", "all"}]
    if unknown:
        raise ValueError(
            f"nothing is written for {plain(', '.join(unknown))}; tensorboard, wandb and mlflow are possible, and the"
            " journal has all"
        )
    return ["tensorboard"] if "all" in given else list(dict.fromkeys(given))


def optimizer(value: Any) -> str:
    """The optimizer's name here."""
    name = text(value)
    if name not in OPTIMIZERS:
        raise ValueError(f"got {plain(value)}; allowed: {', '.join(OPTIMIZERS)}")
    return OPTIMIZERS[name]


def metric(value: Any) -> str:
    """The metric of an evaluation, with the beginning that transformers adds."""
    name = text(value)
    return name if name.startswith("eval_") else f"eval_{name}"


RULES: dict[str, Rule] = {
    "per_device_train_batch_size": to("per_device_train_batch_size", whole),
    "per_device_eval_batch_size": to("per_device_eval_batch_size", whole),
    "gradient_accumulation_steps": to("gradient_accumulation_steps", whole),
    "num_train_epochs": to("num_train_epochs", number),
    "learning_rate": to("learning_rate", number),
    "optim": to("optim", optimizer),
    "weight_decay": to("weight_decay", number),
    "adam_beta1": to("adam_beta1", number),
    "adam_beta2": to("adam_beta2", number),
    "adam_epsilon": to("adam_epsilon", number),
    "max_grad_norm": to("max_grad_norm", number),
    "dataloader_num_workers": to("dataloader_num_workers", whole),
    "save_total_limit": to("save_total_limit", whole),
    **each(
        "logging_steps logging_strategy logging_first_step logging_dir logging_nan_inf_filter log_level "
        "log_level_replica log_on_each_node disable_tqdm run_name project "
        "include_num_input_tokens_seen include_tokens_per_second include_for_metrics skip_memory_metrics"
        " trackio_space_id trackio_bucket_id trackio_static_space_id eval_on_start eval_delay "
        "prediction_loss_only",
        unneeded(JOURNAL),
    ),
    **each("output_dir overwrite_output_dir", unneeded(FOLDERS)),
    **each(
        "push_to_hub hub_model_id hub_strategy hub_private_repo hub_token hub_always_push hub_revision "
        "push_to_hub_model_id",
        unneeded(NO_UPLOAD),
    ),
    **each(
        "torch_compile_backend torch_compile_mode liger_kernel_config use_cache torch_empty_cache_steps "
        "dataloader_pin_memory "
        "dataloader_persistent_workers dataloader_prefetch_factor dataloader_multiprocessing_context "
        "dataloader_in_order gradient_checkpointing_kwargs activation_checkpointing_kwargs "
        "eval_accumulation_steps low_cpu_mem_usage attn_implementation bf16_full_eval fp16_full_eval "
        "eval_do_concat_batches batch_eval_metrics activation_offloading use_cpu no_cuda",
        unneeded(SPEED),
    ),
    **each(
        "ddp_timeout ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_backend "
        "local_rank average_tokens_across_devices save_on_each_node accelerator_config dispatch_batches "
        "split_batches ddp_static_graph eval_use_gather_object",
        unneeded("launch says over how many devices a stage trains, and Cockpit divides the rows itself"),
    ),
    "fsdp": different(f'{DIVIDED}: launch.strategy = "fsdp2"'),
    "deepspeed": different(f'{DIVIDED}: ZeRO-2 and 3 are launch.strategy = "fsdp2", ZeRO-1 is "ddp"'),
    "fsdp_config": different("fsdp2 divides a model by its decoder layers, and saves its parts itself"),
    "parallelism_config": different(BY_LAUNCH),
    **each(
        "save_safetensors save_only_model restore_callback_states_from_checkpoint enable_jit_checkpoint",
        unneeded("a checkpoint has all that an exact resume needs"),
    ),
    **each(
        "resume_from_checkpoint auto_resume_from_checkpoints ignore_data_skip",
        unneeded("cockpit resume continues a run"),
    ),
    **each("remove_unused_columns label_names debug past_index", unneeded("rows are read by their format")),
    "report_to": to("report_to", reporters, "the journal has every number too"),
    **each("do_train do_eval", unneeded("a finetune stage trains, and evaluates if eval_steps is set")),
    "metric_for_best_model": Rule("switch", f"{TUNED}.metric_for_best_model", metric, off=("eval_loss", "loss")),
    "greater_is_better": to("greater_is_better", flag),
    "group_by_length": to("train_sampling_strategy", lambda value: "group_by_length" if flag(value) else "random"),
    "train_sampling_strategy": to("train_sampling_strategy", text),
    "length_column_name": unneeded("lengths are those of the rows' tokens"),
    "dataloader_drop_last": different("the last, smaller batch of an epoch is trained too"),
    "label_smoothing_factor": switch("label_smoothing_factor", number),
    "neftune_noise_alpha": switch("neftune_noise_alpha", number),
    "optim_args": different("the optimizer has no such arguments"),
    "optim_target_modules": different("the optimizer treats all layers alike"),
    "auto_find_batch_size": different("the batch size stays as given"),
    "full_determinism": switch("deterministic", flag),
    "tf32": to("float32_matmul_precision", lambda value: "high" if flag(value) else "highest"),
    "torch_compile": switch("torch_compile", flag),
    "use_liger_kernel": switch("use_liger_kernel", flag, "its loss is not used: logits are computed where labels are"),
    "trust_remote_code": unneeded(
        "code from a model's folder is never executed; a model that needs it cannot be loaded"
    ),
    "data_seed": different("seed decides the order of rows too"),
    "router_aux_loss_coef": different("no loss is added for the balance of experts"),
}
"""Keys of `transformers.TrainingArguments` that need no look at other keys."""

SCHEDULES = {
    "cosine": "cosine",
    "linear": "linear",
    "constant": "constant",
    "constant_with_warmup": "constant_with_warmup",
    "inverse_sqrt": "inverse_sqrt",
    "cosine_with_min_lr": "cosine_with_min_lr",
    "cosine_with_restarts": "cosine_with_restarts",
    "polynomial": "polynomial",
    "warmup_stable_decay": "warmup_stable_decay",
}
SCHEDULE_ARGUMENTS: dict[str, dict[str, tuple[str, Callable[[Any], Any]]]] = {
    "cosine_with_min_lr": {"min_lr_rate": ("min_lr_rate", number)},
    "cosine_with_restarts": {"num_cycles": ("num_cycles", whole)},
    "polynomial": {"power": ("power", number), "lr_end": ("lr_end", number)},
    "warmup_stable_decay": {
        "num_decay_steps": ("num_decay_steps", number),
        "decay_type": ("decay_type", text),
        "min_lr_ratio": ("min_lr_rate", number),
    },
}
"""The arguments of each schedule, and the fields that have the same effect."""


def seeds(draft: Draft) -> None:
    """`seed`, and Unsloth's `random_state` for the adapter's initial weights."""
    draft.apply({"seed": to("seed", whole)})
    entry = draft.take("random_state")
    if entry is not None:
        if draft.get(f"{TUNED}.seed") in (None, entry.value):
            draft.apply({"random_state": to("seed", whole)})
        else:
            draft.note(entry, "different", says="seed decides the adapter's initial weights too")


def schedule(draft: Draft, key: str = "lr_scheduler_type", ratio_key: str = "") -> None:
    """The shape of the learning rate, its end, and its warm-up."""
    name = f"{TUNED}.lr_scheduler_type"
    entry = draft.take(key)
    chosen = "" if entry is None else str(entry.value)
    ratio = draft.take(ratio_key) if ratio_key else None
    if ratio is not None and chosen in ("", "cosine"):
        draft.put(name, "cosine_with_min_lr")
        draft.apply({ratio_key: to("min_lr_rate", number)})
    elif ratio is not None:
        draft.note(ratio, "different", says=f"the schedule {plain(chosen)} has no lowest rate")
    if entry is not None:
        if chosen in SCHEDULES and draft.get(name) is None:
            draft.set(entry, name, SCHEDULES[chosen])
        elif chosen in SCHEDULES:
            draft.note(entry, "imported", [name])
        else:
            says = f"got {plain(chosen)}; allowed: {', '.join(SCHEDULES)}; lr_scheduler_type is left at its default"
            draft.note(entry, "different", says=says)
    _schedule_arguments(draft)
    _warmup(draft, bare_constant=chosen == "constant")


def _schedule_arguments(draft: Draft) -> None:
    """`lr_scheduler_kwargs`, of which a lowest rate may also be an absolute one (`min_lr`)."""
    shape = draft.get(f"{TUNED}.lr_scheduler_type")
    if shape == "warmup_stable_decay":
        draft.put(f"{TUNED}.min_lr_rate", 0.0)  # transformers' own
    entry = draft.take("lr_scheduler_kwargs")
    if entry is None:
        return
    values = dict(entry.value) if isinstance(entry.value, dict) else {}
    known = SCHEDULE_ARGUMENTS.get(str(shape), {})
    if not known or not values:
        if is_off(entry.value):
            draft.note(entry, "unneeded", says="asks for what a recipe does anyway")
        else:
            draft.note(entry, "different", says="the schedule takes no arguments here")
        return
    rate = draft.get(f"{TUNED}.learning_rate")
    lowest = values.get("min_lr")
    if "min_lr_rate" in known and "min_lr_rate" not in values and isinstance(lowest, int | float) and rate:
        values["min_lr_rate"] = values.pop("min_lr") / rate
    problems, fields = [], []
    for name, value in values.items():
        field, convert = known.get(name, ("", text))
        try:
            problem = draft.put(f"{TUNED}.{field}", convert(value)) if field else f"without {plain(name)}"
        except ValueError as error:
            problem = str(error)
        problems += [problem] if problem else []
        fields += [] if problem else [f"{TUNED}.{field}"]
    draft.note(entry, "different" if problems else "imported", fields, "; ".join(problems))


def _warmup(draft: Draft, *, bare_constant: bool) -> None:
    """`warmup_steps` counts before `warmup_ratio`, as in transformers; its constant schedule ignores both."""
    name = f"{TUNED}.warmup_steps"
    steps, ratio = draft.take("warmup_steps"), draft.take("warmup_ratio")
    for entry in (steps, ratio):
        if entry is None:
            continue
        if bare_constant:
            draft.note(entry, "unneeded", says="transformers' constant schedule has no warm-up")
        elif draft.get(name):
            draft.note(entry, "unneeded", says="warmup_steps counts before it")
        elif entry is ratio and _ratio_of(entry) >= 1:
            draft.note(entry, "different", says=f"got {plain(entry.value)}; allowed: a share of all steps below 1")
        else:
            draft.apply({entry.key: to("warmup_steps", number)})


def _ratio_of(entry: Entry) -> float:
    try:
        return number(entry.value)
    except ValueError:
        return 0.0


def steps(draft: Draft) -> None:
    """`max_steps`, of which -1 means that epochs decide."""
    entry = draft.take("max_steps")
    if entry is None:
        return
    if isinstance(entry.value, int | float) and entry.value <= 0:
        draft.note(entry, "unneeded", says="num_train_epochs decides, as here")
    else:
        draft.apply({"max_steps": to("max_steps", whole)})


def saving(draft: Draft, default: int | None) -> None:
    """When checkpoints are written.

    Args:
        draft: the recipe in the making.
        default: the program's steps between two checkpoints; None if it saves once an epoch.
    """
    strategy = draft.take("save_strategy")
    kind = str(strategy.value) if strategy is not None else "steps"
    entry = draft.take("save_steps")
    if entry is not None:
        if kind != "steps":
            draft.note(entry, "unneeded", says=f"save_strategy is {plain(kind)}")
        elif isinstance(entry.value, float) and 0 < entry.value < 1:
            draft.note(entry, "different", says=f"a share of all steps; {EPOCHS}")
        else:
            draft.apply({"save_steps": to("save_steps", whole)})
    if strategy is None:
        if default is not None and (entry is None or not draft.get(f"{TUNED}.save_steps")):
            draft.default(f"{TUNED}.save_steps", default)
        return
    if kind == "steps":
        draft.note(strategy, "unneeded", says="as here")
    elif is_off(strategy.value):
        draft.note(strategy, "unneeded", says="checkpoints are written, and the newest are kept")
    elif kind == "epoch":
        draft.set(strategy, f"{TUNED}.save_strategy", kind)
    else:
        draft.note(strategy, "different", says="save_steps is left at its default: not a strategy that is known here")


def evaluating(draft: Draft, *strategies: str) -> None:
    """When the val split is evaluated; `strategies` are the names of the key that chooses steps or epochs."""
    kinds = [entry for name in strategies if (entry := draft.take(name)) is not None]
    entry = draft.take("eval_steps")
    kind = str(kinds[0].value) if kinds and not is_off(kinds[0].value) else ("no" if kinds else "")
    if entry is not None:
        if kind == "no":
            draft.note(entry, "unneeded", says="no evaluation during training")
        elif kind == "epoch":
            draft.note(entry, "unneeded", says="the evaluation is once an epoch")
        elif isinstance(entry.value, float) and 0 < entry.value < 1:
            draft.note(entry, "different", says=f"a share of all steps; {EPOCHS}")
        else:
            draft.apply({"eval_steps": to("eval_steps", whole)})
    for chosen in kinds:
        if kind == "epoch":
            draft.set(chosen, f"{TUNED}.eval_strategy", kind)
        elif kind == "steps" and not draft.get(f"{TUNED}.eval_steps"):
            draft.note(chosen, "different", says="eval_steps is not set; without it nothing is evaluated")
        else:
            draft.note(chosen, "unneeded", says="as here")


def best_at_end(draft: Draft) -> None:
    """`load_best_model_at_end`, where each checkpoint has an evaluation, and early stopping, where evaluations exist;
    after `saving` and `evaluating`."""
    _early_stopping(draft)
    chosen = draft.get(f"{TUNED}.metric_for_best_model")
    measured = ("eval_loss", *(f"eval_{name}" for name in MEASURED)) if draft.on_pairs else EVALUATED
    if chosen is not None and chosen not in measured:
        for field in ("metric_for_best_model", "greater_is_better"):
            says = f"no evaluation measures {plain(chosen)}: the best checkpoint is the one with the lowest eval_loss"
            draft.drop(f"{TUNED}.{field}", "different", says)
    entry = draft.take("load_best_model_at_end")
    if entry is None:
        return
    if is_off(entry.value):
        draft.note(entry, "unneeded", says="asks for what a recipe does anyway")
        return
    strategies = [draft.get(f"{TUNED}.{name}_strategy") or "steps" for name in ("save", "eval")]
    every, between = draft.get(f"{TUNED}.save_steps") or 100, draft.get(f"{TUNED}.eval_steps")
    fits = strategies == ["epoch", "epoch"] or (
        strategies == ["steps", "steps"] and between is not None and every % between == 0
    )
    if fits:
        draft.apply({"load_best_model_at_end": to("load_best_model_at_end", flag)})
    else:
        draft.note(entry, "different", says=f"{BEST}; set it where each checkpoint has an evaluation")


def _early_stopping(draft: Draft) -> None:
    evaluates = draft.get(f"{TUNED}.eval_strategy") == "epoch" or draft.get(f"{TUNED}.eval_steps") is not None
    for key in ("early_stopping_patience", "early_stopping_steps"):
        entry = draft.take(key)
        if entry is not None and not is_off(entry.value) and not evaluates:
            draft.note(entry, "different", says="nothing is evaluated, so the stage ends after its steps")
        elif entry is not None:
            draft.apply({key: to("early_stopping_patience", whole)})


def precision(draft: Draft, *, default: bool, pure: str = "") -> None:
    """`bf16`, `fp16` and the keys for 16-bit weights."""
    name = f"{TUNED}.bf16"
    entry = draft.take("bf16")
    if entry is not None:
        if str(entry.value).lower() in ("auto", "full"):
            says = "trained weights stay in 32 bits; set false where the device does not compute in bfloat16"
            draft.set(entry, name, True, says)
        else:
            draft.apply({"bf16": to("bf16", flag)})
    _half(draft)
    wide = draft.take(pure) if pure else None
    if wide is not None:
        if is_off(wide.value):
            draft.note(wide, "unneeded", says="asks for what a recipe does anyway")
        elif draft.get(f"{TUNED}.fp16"):
            draft.note(wide, "unneeded", says="products have one format, and fp16 is set")
        elif draft.put(name, True) == "":
            draft.note(wide, "different", says=PRECISION)
    if default and draft.get(name) is None and "bf16" not in draft.config.entries and is_off(draft.value("fp16")):
        draft.default(name, True)


def _half(draft: Draft) -> None:
    """`fp16`, after `bf16`."""
    entry = draft.take("fp16")
    if entry is None:
        return
    if is_off(entry.value):
        draft.note(entry, "unneeded", says="asks for what a recipe does anyway")
    elif str(entry.value).lower() == "auto":
        draft.note(entry, "unneeded", says="bf16 decides")
    elif draft.get(f"{TUNED}.bf16"):
        draft.note(entry, "unneeded", says="products have one format, and bf16 is set")
    else:
        draft.set(entry, f"{TUNED}.fp16", True, "the loss is scaled; trained weights stay in 32 bits")


def held_out(draft: Draft, key: str) -> None:
    """A share of the rows, or a number of them, held out for validation: a prepare stage splits them."""
    entry = draft.take(key)
    if entry is None:
        return
    try:
        amount = number(entry.value)
    except ValueError as error:
        draft.note(entry, "different", says=str(error))
        return
    if amount <= 0:
        draft.note(entry, "unneeded", says="no rows are held out")
    elif amount < 1:
        draft.set(entry, f"{DATA}.val_fraction", amount)
    else:
        draft.apply({key: to(f"{DATA}.val_rows", whole)})
