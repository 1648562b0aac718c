"""What the arguments of TRL, PEFT, transformers and Unsloth mean in a recipe: from YAML, JSON, or a Python script.

Facts: `SFTConfig`, `ModelConfig` and `ScriptArguments` of TRL, `LoraConfig` of PEFT, `TrainingArguments`, and the
`from_pretrained` and `get_peft_model` of Unsloth.
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
    text,
    to,
    unneeded,
    whole,
)
from cockpit.importing.meanings import (
    ADAPTER,
    EIGHT_BITS,
    EXTRA_LAYERS,
    FOUR_BITS,
    FULL,
    GENERATION,
    METHOD_PART,
    NO_TOKENS,
    PADDING,
)
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
from recipes.stages.finetune import ALL_LINEAR

TRL, UNSLOTH = "TRL", "Unsloth"
MODEL_KEYS = ("model_name_or_path", "model_name", "pretrained_model_name_or_path")


def targets(value: Any) -> list[str]:
    """The layers of an adapter."""
    found = names(value)
    return [ALL_LINEAR] if found in (["all-linear"], ["all"]) else found


OWN: dict[str, Rule] = {
    **each("r lora_r", to("r", whole)),
    "lora_alpha": to("lora_alpha", number),
    "lora_dropout": to("lora_dropout", number),
    **each("target_modules lora_target_modules", to("target_modules", targets)),
    "use_rslora": to("use_rslora", flag),
    **each("max_length max_seq_length", to("max_length", whole)),
    "load_in_4bit": different(FOUR_BITS),
    "load_in_8bit": different(EIGHT_BITS),
    "load_in_16bit": unneeded("the weights are in 32 bits"),
    **each(
        "bnb_4bit_quant_type bnb_4bit_compute_dtype bnb_4bit_use_double_quant use_bnb_nested_quant "
        "quantization_config bnb_4bit_quant_storage bnb_4bit_use_double_quantization llm_int8_threshold",
        unneeded("belongs to load_in_4bit"),
    ),
    **each("full_finetuning", missing(FULL)),
    "bias": different(ADAPTER, "none"),
    **each("use_dora loftq_config rank_pattern alpha_pattern layers_to_transform layers_pattern", different(ADAPTER)),
    **each("layer_replication lora_target_parameters target_parameters exclude_modules", different(ADAPTER)),
    "init_lora_weights": different(ADAPTER, True),
    **each("modules_to_save lora_modules_to_save trainable_token_indices", different(EXTRA_LAYERS)),
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
    **each("eval_packing padding_free pad_to_multiple_of", unneeded(PADDING)),
    "packing_strategy": different("rows are never cut to fill a sequence", "bfd"),
    "truncation_mode": to("truncation", choice({"keep_start": "answer", "keep_end": "left"})),
    **each(
        "dataset_num_proc dataset_batch_size dataset_kwargs dataset_streaming shuffle_dataset num_proc",
        unneeded("rows are read in a stream"),
    ),
    "formatting_func": different("code of a script is never executed: describe its rows with format and columns"),
    "eos_token": different("the chat template's own token ends a turn"),
    "pad_token": unneeded("padding is not scored, so its token does not matter"),
    "loss_type": different("the loss is cross-entropy", "nll", "chunked_nll"),
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
    **each(
        "beta loss_weights reference_free label_smoothing ref_model max_prompt_length "
        "max_completion_length num_generations reward_funcs desirable_weight undesirable_weight "
        "precompute_ref_log_probs",
        different(METHOD_PART),
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
    *RULES, *OWN, *MODEL_KEYS, "use_peft", "dataset", "dataset_name", "dataset_config", "dataset_train_split",
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
    for name in sorted(filter(is_other_method, draft.config.calls)):
        draft.outcomes.append(Outcome(name, ..., 0, "missing", (), METHOD_PART))
    draft.apply(OWN | {key: rule for key, rule in RULES.items() if key not in OWN})
    steps(draft)
    schedule(draft)
    saving(draft, 500)
    evaluating(draft, "eval_strategy", "evaluation_strategy")
    best_at_end(draft)
    config = "SFTConfig" in draft.config.calls or not (draft.config.calls - {"dict"} or unsloth)
    precision(draft, default=config)
    seeds(draft)
    _checkpointing(draft, default=config and not unsloth)
    for key in MODEL_KEYS:
        if draft.get(f"{TUNED}.model") is None:
            draft.apply({key: to("model", lambda value: place(draft, text(value)))})
        else:
            draft.apply({key: different("a stage has one model")})
    _adapter(draft, unsloth=unsloth)
    _scored(draft)
    template_file(draft, "chat_template_path")
    put_data(draft)
    _defaults(draft, unsloth=unsloth, config=config)
    draft.finish(KNOWN)


def _adapter(draft: Draft, *, unsloth: bool) -> None:
    """Whether an adapter is trained: PEFT's arguments, or TRL's `use_peft`."""
    entry = draft.take("use_peft")
    chosen = entry is not None and not is_off(entry.value)
    keys = {"r", "lora_r", "lora_alpha", "target_modules", "lora_target_modules"} & draft.config.entries.keys()
    if entry is not None and chosen:
        draft.note(entry, "imported", says="a finetune stage trains LoRA")
    elif entry is not None:
        draft.note(entry, "missing", says=FULL)
    elif not (unsloth or keys or "LoraConfig" in draft.config.calls):
        says = f"without use_peft or a LoraConfig, TRL trains all weights: {FULL}"
        draft.outcomes.append(Outcome("use_peft", None, 0, "missing", (), says))


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
    if not chosen and draft.config.entries.keys() & {"dataset_name", "dataset", "train_dataset"}:
        draft.outcomes.append(Outcome("assistant_only_loss", None, 0, "different", (), _WHOLE))


_WHOLE = (
    "TRL scores every token of a conversation unless this is true, and of prompt-completion rows the completion; a"
    ' recipe scores answers; train_on = "all" scores everything'
)


def _defaults(draft: Draft, *, unsloth: bool, config: bool) -> None:
    peft = "LoraConfig" in draft.config.calls
    for name, value, key in (
        ("max_length", 2048 if unsloth else 1024, "max_seq_length" if unsloth else "max_length"),
        ("truncation", "answer", "truncation_mode"),
        ("lora_alpha", 16.0 if unsloth else (8.0 if peft else 32.0), ""),
        ("r", 16 if unsloth or not peft else 8, ""),
        ("lora_dropout", 0.0 if unsloth or peft else 0.05, ""),
        ("learning_rate", 2e-5 if config else 5e-5, ""),
        ("num_train_epochs", 3.0, ""),
        ("lr_scheduler_type", "linear", ""),
    ):
        draft.default(f"{TUNED}.{name}", value, key)
    if unsloth and "load_in_4bit" not in draft.config.entries:
        draft.outcomes.append(Outcome("load_in_4bit", True, 0, "different", (), f"{UNSLOTH}'s default: {FOUR_BITS}"))
