"""What the arguments of TRL, PEFT, transformers and Unsloth mean in a recipe: from YAML, JSON, or a Python script.

Facts: `SFTConfig`, `DPOConfig`, `ModelConfig` and `ScriptArguments` of TRL, `LoraConfig` of PEFT, `TrainingArguments`,
and the `from_pretrained` and `get_peft_model` of Unsloth.
"""

from __future__ import annotations

from typing import Any

from cockpit.importing.arguments_data import put_data
from cockpit.importing.draft import (
    TUNED,
    Draft,
    Outcome,
    Rule,
    choice,
    different,
    each,
    flag,
    is_off,
    missing,
    names,
    number,
    switch,
    text,
    to,
    unneeded,
    whole,
)
from cockpit.importing.meanings import (
    ADAPTER,
    ALL_WEIGHTS_SAYS,
    EIGHT_BITS,
    GENERATION,
    METHOD_PART,
    NO_TOKENS,
    PADDING,
    QUANTIZED,
    REFERENCE,
    SELECTED,
    UNSLOTH_ENVIRONMENT,
    WHOLE_PAIR,
    chosen_too,
    initial,
    loftq,
    losses,
    pattern,
    weights_of_losses,
)
from cockpit.importing.script import PAIRS as CLASSES_OF_PAIRS
from cockpit.importing.script import is_other_method
from cockpit.importing.sources import place
from cockpit.importing.templates import template_file
from cockpit.importing.training_arguments import (
    NO_UPLOAD,
    PRECISION,
    RULES,
    SPEED,
    best_at_end,
    evaluating,
    precision,
    saving,
    schedule,
    seeds,
    steps,
)
from recipes.stages.adapter.fields import ALL_LINEAR
from recipes.stages.dpo import LOSS_TYPES

TRL, UNSLOTH = "TRL", "Unsloth"
MODEL_KEYS = ("model_name_or_path", "model_name", "pretrained_model_name_or_path")


def targets(value: Any) -> list[str]:
    """The layers of an adapter."""
    found = pattern(value)
    return [ALL_LINEAR] if found in (["all-linear"], ["all"]) else found


OWN: dict[str, Rule] = {
    **each("r lora_r", to("r", whole)),
    "lora_alpha": to("lora_alpha", number),
    "lora_dropout": to("lora_dropout", number),
    **each("target_modules lora_target_modules", to("target_modules", targets)),
    "use_rslora": to("use_rslora", flag),
    **each("max_length max_seq_length", to("max_length", whole)),
    "load_in_4bit": switch("load_in_4bit", flag),
    "load_in_8bit": different(EIGHT_BITS),
    "load_in_16bit": unneeded("the base is not quantized"),
    **QUANTIZED,
    "quantization_config": unneeded("its own arguments decide"),
    "bias": switch("bias", text),
    "use_dora": switch("use_dora", flag),
    **SELECTED,
    **each("loftq_config layers_pattern", different(ADAPTER)),
    **each("layer_replication lora_target_parameters target_parameters exclude_modules", different(ADAPTER)),
    "init_lora_weights": to("init_lora_weights", initial),
    **each("modules_to_save lora_modules_to_save", switch("modules_to_save", names)),
    "trainable_token_indices": different("embeddings are trained as a whole, by modules_to_save, or not at all"),
    **each("task_type lora_task_type", different("a finetune stage trains a causal language model", "CAUSAL_LM")),
    **each(
        "eva_config corda_config lora_ga_config velora_config alora_invocation_tokens use_qalora "
        "qalora_group_size monteclora_config lora_bias use_bdlora arrow_config kasa_config "
        "megatron_config megatron_core",
        different(ADAPTER),
    ),
    **each("runtime_config ensure_weight_tying", unneeded("found by the model's layers")),
    **each("fan_in_fan_out inference_mode peft_type", unneeded("found by the model's layers")),
    "packing": to("packing", flag),
    "padding_free": to("padding_free", flag),
    **each("eval_packing pad_to_multiple_of", unneeded(PADDING)),
    "packing_strategy": different("rows are never cut to fill a sequence", "bfd"),
    "truncation_mode": to("truncation", choice({"keep_start": "answer", "keep_end": "left"})),
    **each(
        "dataset_num_proc dataset_batch_size dataset_kwargs dataset_streaming shuffle_dataset num_proc",
        unneeded("rows are read in a stream"),
    ),
    "formatting_func": different("code of a script is never executed: describe its rows with format and columns"),
    "eos_token": different("the chat template's own token ends a turn"),
    "pad_token": unneeded("padding is not scored, so its token does not matter"),
    **each("dtype torch_dtype", unneeded(PRECISION)),
    **each(
        "device_map max_lora_rank fast_inference gpu_memory_utilization rope_scaling_factor "
        "float8_kv_cache token cache_dir offload_embedding use_exact_model_name disable_log_stats",
        unneeded(SPEED),
    ),
    "rope_scaling": different("the model keeps its own positions"),
    "fix_tokenizer": unneeded("the tokenizer is read from tokenizer.json"),
    **each("model_revision revision", different("the newest revision in the local cache is used", "main")),
    "model_init_kwargs": different("the model is loaded as its config.json says"),
    "embedding_learning_rate": different("all layers have the same learning rate"),
    **each(
        "finetune_vision_layers finetune_language_layers finetune_attention_modules finetune_mlp_modules",
        different("target_modules names the layers that get an adapter", True),
    ),
    **each(
        "save_model save_method save_path save_gguf quantization quantization_method adapter_file",
        unneeded("cockpit merge and cockpit export write merged models and GGUF files"),
    ),
    **each("push_model push_gguf hub_path", unneeded(NO_UPLOAD)),
    "beta": to("beta", number),
    "label_smoothing": switch("label_smoothing", number),
    "ld_alpha": to("ld_alpha", number),
    "f_divergence_type": to("f_divergence_type", text),
    **{key: switch(key, flag) for key in ("use_weighting", "precompute_ref_log_probs")},
    "disable_dropout": to("disable_dropout", flag),
    "precompute_ref_batch_size": unneeded(SPEED),
    "reference_free": different("TRL 1.16 has no reference_free"),
    "sync_ref_model": different("the reference is never changed"),
    **each("ref_model_mixup_alpha ref_model_sync_steps", unneeded("belongs to sync_ref_model")),
    **each("f_alpha_divergence_coef discopop_tau", unneeded("belongs to values that no stage has")),
    **each("max_prompt_length max_completion_length", different(WHOLE_PAIR)),
    **each(
        "num_generations reward_funcs desirable_weight undesirable_weight cpo_alpha simpo_gamma", missing(METHOD_PART)
    ),
    **each("max_new_tokens temperature top_p", unneeded(GENERATION)),
    **each("fraction columns streaming data_dir ignore_bias_buffers", different("all rows are read")),
    "do_predict": unneeded(GENERATION),
    "env": different("environment variables are set where the run is launched"),
    "add_tokens": different(NO_TOKENS),
    "eval_dataset": different("the val split is a file of its own beside the training rows (val.jsonl), or held out"),
}
"""Keys that need no look at other keys."""

KNOWN = (
    *RULES, *OWN, *MODEL_KEYS, "full_finetuning", "loss_type", "loss_weights", "rpo_alpha", "ref_model", "use_peft",
    "dataset", "dataset_name", "dataset_config", "dataset_train_split",
    "dataset_test_split", "dataset_text_field", "datasets", "test_split_size", "data_files", "train_dataset",
    "completion_only_loss",
    "assistant_only_loss", "chat_template_path", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps",
    "warmup_ratio", "save_steps", "save_strategy",
    "load_best_model_at_end", "eval_steps", "eval_strategy", "evaluation_strategy", "bf16", "fp16",
    "seed", "random_state", "max_steps", "gradient_checkpointing", "use_gradient_checkpointing",
    "activation_checkpointing",
)  # fmt: skip
"""Every key that has a meaning here."""


def is_unsloth(draft: Draft) -> bool:
    """Whether Unsloth's functions or its own keys stand in the file."""
    own = {"use_gradient_checkpointing", "random_state", "max_seq_length", "full_finetuning"}
    return any("FastLanguageModel" in call or "FastModel" in call for call in draft.config.calls) or (
        not draft.config.calls - {"dict"} and len(own & draft.config.entries.keys()) > 1
    )


def convert(draft: Draft) -> None:
    """Give every key its outcome, and fill the stages."""
    unsloth = is_unsloth(draft)
    _method(draft, unsloth=unsloth)
    for name in sorted(filter(is_other_method, draft.config.calls)):
        draft.outcomes.append(Outcome(name, ..., 0, "missing", (), METHOD_PART))
    loftq(draft, "init_lora_weights")
    draft.apply(OWN | {key: rule for key, rule in RULES.items() if key not in OWN})
    steps(draft)
    schedule(draft)
    saving(draft, 500)
    evaluating(draft, "eval_strategy", "evaluation_strategy")
    best_at_end(draft)
    config = not {"SFTConfig", "DPOConfig"}.isdisjoint(draft.config.calls) or not (
        draft.config.calls - {"dict"} or unsloth
    )
    precision(draft, default=config)
    seeds(draft)
    _checkpointing(draft, default=config and not unsloth)
    for key in MODEL_KEYS:
        if draft.get(f"{TUNED}.model") is None:
            draft.apply({key: to("model", lambda value: place(draft, text(value)))})
        else:
            draft.apply({key: different("a stage has one model")})
    _losses(draft)
    _scored(draft)
    template_file(draft, "chat_template_path")
    put_data(draft)
    _defaults(draft, unsloth=unsloth, config=config)
    if unsloth and not draft.on_pairs and not draft.put(f"{TUNED}.backend", "unsloth"):
        draft.outcomes.append(Outcome("backend", "unsloth", 0, "default", (f"{TUNED}.backend",), UNSLOTH_ENVIRONMENT))
    draft.finish(KNOWN)


def _method(draft: Draft, *, unsloth: bool) -> None:
    """Whether answers or pairs are trained, and an adapter (PEFT's arguments, or TRL's `use_peft`) or all weights."""
    pairs = _is_about_pairs(draft)
    entry, whole_model = draft.take("use_peft"), draft.take("full_finetuning")
    keys = {"r", "lora_r", "lora_alpha", "target_modules", "lora_target_modules"} & draft.config.entries.keys()
    adapter = unsloth or bool(keys) or "LoraConfig" in draft.config.calls
    if entry is not None:
        adapter = not is_off(entry.value)
    if whole_model is not None:
        adapter = is_off(whole_model.value)
    draft.choose(pairs=pairs, all_weights=not adapter)
    says = "the stage trains LoRA" if adapter else ALL_WEIGHTS_SAYS
    for one in (entry, whole_model):
        if one is not None:
            draft.note(one, "imported", says=says)
    if entry is None and whole_model is None and not adapter:
        says = f"without use_peft or a LoraConfig, TRL trains all weights: {says}"
        draft.outcomes.append(Outcome("use_peft", None, 0, "imported", (), says))


def _is_about_pairs(draft: Draft) -> bool:
    """Whether a script has DPO's classes, or a file without classes has keys that are DPO's and of no other method."""
    if draft.config.calls - {"dict"}:
        return not CLASSES_OF_PAIRS.isdisjoint(draft.config.calls)
    given = draft.value("loss_type")
    return "beta" in draft.config.entries or not set(LOSS_TYPES).isdisjoint(
        map(str, given if isinstance(given, list) else [given])
    )


def _losses(draft: Draft) -> None:
    """The loss, and what it is compared with."""
    if draft.on_pairs:
        losses(draft, "loss_type")
    else:
        draft.apply({"loss_type": different("the loss is cross-entropy", "nll", "chunked_nll")})
    weights_of_losses(draft, "loss_weights")
    chosen_too(draft, "rpo_alpha")
    entry = draft.waiting.get("ref_model")
    if entry is not None and entry.value is None:
        draft.note(entry, "unset")
    elif entry is not None:
        draft.note(entry, "different", says=REFERENCE)


def _checkpointing(draft: Draft, *, default: bool) -> None:
    name = f"{TUNED}.gradient_checkpointing"
    for key in ("gradient_checkpointing", "activation_checkpointing", "use_gradient_checkpointing"):
        entry = draft.take(key)
        if entry is None:
            continue
        if entry.value == "unsloth":
            draft.set(entry, name, True, "activations are computed again, and not moved to other memory")
        else:
            draft.apply({key: to("gradient_checkpointing", flag)})
    if default:
        draft.default(name, True)


def _scored(draft: Draft) -> None:
    """Which tokens are scored; TRL's default depends on the rows, so it is said instead of guessed."""
    answers = draft.take("assistant_only_loss")
    completion = draft.take("completion_only_loss")
    chosen = False
    for entry, says in ((answers, "answers are scored, as here"), (completion, "completions are scored, as here")):
        if entry is not None and not is_off(entry.value):
            draft.note(entry, "unneeded", says=says)
            chosen = True
    for entry in (answers, completion):
        if entry is not None and is_off(entry.value):
            if chosen:
                draft.note(entry, "unneeded", says="the other key decides")
            elif entry is completion:
                draft.set(entry, f"{TUNED}.train_on", "all")
            else:
                draft.note(entry, "different", says=_WHOLE)
            chosen = True
    if not draft.on_pairs and not chosen and draft.config.entries.keys() & {"dataset_name", "dataset", "train_dataset"}:
        draft.outcomes.append(Outcome("assistant_only_loss", None, 0, "different", (), _WHOLE))


_WHOLE = (
    "TRL scores every token of a conversation unless this is true, and of prompt-completion rows the completion; a"
    ' recipe scores answers; train_on = "all" scores everything'
)


def _defaults(draft: Draft, *, unsloth: bool, config: bool) -> None:
    peft = "LoraConfig" in draft.config.calls
    rate = 1e-6 if draft.on_pairs else 2e-5
    for name, value, key in (
        ("max_length", 2048 if unsloth else 1024, "max_seq_length" if unsloth else "max_length"),
        ("truncation", "answer", "truncation_mode"),
        ("lora_alpha", 16.0 if unsloth else (8.0 if peft else 32.0), ""),
        ("r", 16 if unsloth or not peft else 8, ""),
        ("lora_dropout", 0.0 if unsloth or peft else 0.05, ""),
        ("learning_rate", rate if config else 5e-5, ""),
        ("num_train_epochs", 3.0, ""),
        ("lr_scheduler_type", "linear", ""),
    ):
        draft.default(f"{TUNED}.{name}", value, key)
    if unsloth and "load_in_4bit" not in draft.config.entries:
        draft.default(f"{TUNED}.load_in_4bit", True)
    if draft.get(f"{TUNED}.load_in_4bit"):
        _four_bits(draft, unsloth=unsloth)


def _four_bits(draft: Draft, *, unsloth: bool) -> None:
    """The values that Unsloth, or transformers' BitsAndBytesConfig, has for what the file leaves out."""
    if unsloth:
        draft.default(f"{TUNED}.bnb_4bit_use_double_quant", True)
    elif "BitsAndBytesConfig" in draft.config.calls:
        draft.default(f"{TUNED}.bnb_4bit_quant_type", "fp4")
        draft.default(f"{TUNED}.bnb_4bit_compute_dtype", "float32")
