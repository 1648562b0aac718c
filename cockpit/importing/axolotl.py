"""What the keys of an Axolotl configuration mean in a recipe.

Facts: `utils/schemas/*.py` and `core/builders/base.py` of Axolotl.
"""

from __future__ import annotations

from typing import Any

from cockpit.importing.axolotl_data import EntryError, source_of
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
    missing,
    names,
    number,
    plain,
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
    PACKING,
    ROPE,
)
from cockpit.importing.sources import NO_IMAGES, ONE_SOURCE, place, put_source
from cockpit.importing.templates import AXOLOTL_TEMPLATES, chat_template, template_file
from cockpit.importing.training_arguments import (
    EPOCHS,
    JOURNAL,
    NO_UPLOAD,
    ONE_DEVICE,
    RULES,
    SPEED,
    evaluating,
    held_out,
    optimizer,
    precision,
    saving,
    schedule,
    seeds,
    steps,
)
from recipes.stages.finetune import ALL_LINEAR

PROGRAM = "Axolotl"
METHODS = {
    "rl": METHOD_PART,
    "reward_model": METHOD_PART,
    "process_reward_model": METHOD_PART,
    "unfrozen_parameters": FULL,
    "lora_target_parameters": "an adapter trains linear layers, not single parameters",
    "ebft": METHOD_PART,
    "diffusion": "no stage kind trains a diffusion model",
    "relora": "an adapter is trained from its start to its end, without restarts",
    "use_relora": "an adapter is trained from its start to its end, without restarts",
}
"""Keys that select a method that no stage kind has."""
SPEEDS = frozenset(
    {
        "axolotl.integrations.liger.LigerPlugin",
        "axolotl.integrations.cut_cross_entropy.CutCrossEntropyPlugin",
    }
)
"""Plugins that compute the same numbers faster."""

OWN: dict[str, Rule] = {
    "micro_batch_size": to("per_device_train_batch_size", whole),
    "eval_batch_size": to("per_device_eval_batch_size", whole),
    "num_epochs": to("num_train_epochs", number),
    "optimizer": to("optim", optimizer),
    "sequence_len": to("max_length", whole),
    "lora_r": to("r", whole),
    "lora_alpha": to("lora_alpha", number),
    "lora_dropout": to("lora_dropout", number),
    "peft_use_rslora": to("use_rslora", flag),
    **{key: missing(says) for key, says in METHODS.items()},
    "load_in_4bit": different(FOUR_BITS),
    "load_in_8bit": different(EIGHT_BITS),
    **each("gptq gptq_groupsize gptq_model_v1 qat quantization fp8 nvfp4", different("the base is not quantized")),
    **each("bnb_config_kwargs loftq peft qlora_sharded_model_loading", different(ADAPTER)),
    **each("peft_use_dora peft_layers_to_transform peft_layers_pattern peft_layer_replication", different(ADAPTER)),
    "peft_init_lora_weights": different(ADAPTER, True),
    **each("peft_trainable_token_indices lora_modules_to_save", different(EXTRA_LAYERS)),
    **each("peft_ensure_weight_tying peft_autocast_adapter_dtype", unneeded("the adapter is in 32 bits")),
    **each("lora_fan_in_fan_out lora_on_cpu lora_out_dir", unneeded("found by the model's layers")),
    "loraplus_lr_ratio": different("both matrices of the adapter have the same learning rate"),
    "loraplus_lr_embedding": unneeded("belongs to loraplus_lr_ratio"),
    **each("sample_packing max_packed_sequence_len batch_flattening", different(PACKING)),
    **each(
        "eval_sample_packing pad_to_sequence_len sample_packing_eff_est sample_packing_group_size "
        "sample_packing_bin_size sample_packing_sequentially multipack_real_batches "
        "pretrain_multipack_buffer_size pretrain_multipack_attn total_num_tokens total_supervised_tokens"
        " pretraining_sample_concatenation",
        unneeded("rows are not packed, and padding is not scored"),
    ),
    **each(
        "dataset_prepared_path push_dataset_to_hub dataset_processes dataset_keep_in_memory "
        "dataset_shard_num dataset_shard_idx skip_prepare_dataset num_proc streaming "
        "streaming_multipack_buffer_size shuffle_buffer_size is_preprocess preprocess_iterable",
        unneeded("rows are read in a stream, and nothing has to be prepared before"),
    ),
    "shuffle_merged_datasets": unneeded("rows are taken in random order"),
    "shuffle_before_merging_datasets": unneeded("rows are taken in random order"),
    "curriculum_sampling": different("rows are taken in random order"),
    "min_sample_len": different("rows of every length are trained"),
    **each("excess_length_strategy", different("truncation of the stage decides what a long row does")),
    "test_datasets": different("the val split is a file of its own beside the training rows (val.jsonl), or held out"),
    **each(
        "xformers_attention flash_attention sdp_attention flex_attention eager_attention "
        "flash_attn_cross_entropy flash_attn_rms_norm flash_attn_fuse_qkv flash_attn_fuse_mlp "
        "flash_optimum flex_attn_compile_kwargs unsloth_cross_entropy_loss unsloth_lora_mlp "
        "unsloth_lora_qkv unsloth_lora_o unsloth_rms_norm unsloth_rope lora_mlp_kernel lora_qkv_kernel "
        "lora_o_kernel lora_embedding_kernel use_kernels experts_implementation "
        "gradient_checkpointing_kwargs liger_rope liger_rms_norm liger_glu_activation liger_layer_norm "
        "liger_fused_linear_cross_entropy liger_cross_entropy liger_swiglu liger_use_token_scaling "
        "liger_rms_norm_gated cut_cross_entropy gc_steps max_memory gpu_memory_limit device_map device "
        "chunked_cross_entropy chunked_cross_entropy_num_chunks scaling_softmax attn_implementation "
        "low_cpu_mem_usage torchdistx_path llama4_linearized_experts activation_offloading tiled_mlp "
        "tiled_mlp_num_shards use_scattermoe use_sonicmoe quantize_moe_experts layer_offloading "
        "fused_attn_kernel sample_packing_seq_len_multiplier use_dsv4_kernels use_glm_dsa_kernels",
        unneeded(SPEED),
    ),
    **each(
        "ddp world_size fsdp_version fsdp_final_state_dict_type sequence_parallel_degree "
        "context_parallel_size tensor_parallel_size dp_shard_size dp_replicate_size heads_k_stride "
        "ring_attn_func use_ray ray_run_name ray_num_workers resources_per_worker expert_parallel_size",
        different(ONE_DEVICE),
    ),
    **each("s2_attention", different("attention is not shifted")),
    **each(
        "use_pose pose_split_on_token_ids pose_max_context_len pose_num_chunks", different("positions are not skipped")
    ),
    "rope_scaling": different(ROPE),
    **each(
        "model_config overrides_of_model_config model_kwargs overrides_of_model_kwargs",
        different("the model is loaded as its config.json says"),
    ),
    **each(
        "model_revision revision_of_model",
        different("the newest revision in the local cache is used; name a folder for another one", "main"),
    ),
    **each("base_model_config cls_model_config", unneeded("config.json of the model's folder is read")),
    "tokenizer_config": different("the model's own tokenizer is used"),
    "base_model_ignore_patterns": unneeded("nothing is downloaded"),
    **each(
        "model_type type_of_model tokenizer_type processor_type is_falcon_derived_model "
        "is_llama_derived_model is_mistral_derived_model is_qwen_derived_model tokenizer_use_fast "
        "tokenizer_legacy tokenizer_save_jinja_files tokenizer_use_mistral_common "
        "model_quantization_config model_quantization_config_kwargs use_cut_cross_entropy use_onebitllms",
        unneeded("the model's folder says what it is"),
    ),
    **each(
        "tokens added_tokens_overrides resize_token_embeddings_to_32x shrink_embeddings "
        "mean_resizing_embeddings fix_untrained_tokens embeddings_skip_upcast",
        different(NO_TOKENS),
    ),
    "default_system_message": different("a row without a system turn gets what the chat template writes"),
    "chat_template_kwargs": different("the chat template gets no further arguments"),
    "eot_tokens": different("the chat template's own token ends a turn"),
    **each(
        "wandb_project wandb_entity wandb_watch wandb_name wandb_log_model wandb_run_id wandb_mode "
        "use_wandb use_mlflow mlflow_tracking_uri mlflow_experiment_name mlflow_run_name "
        "hf_mlflow_log_artifacts use_comet comet_api_key comet_workspace comet_project_name "
        "comet_experiment_key comet_mode comet_online comet_experiment_config use_swanlab "
        "swanlab_project swanlab_experiment_name swanlab_description swanlab_mode swanlab_workspace "
        "swanlab_api_key swanlab_log_completions swanlab_log_model swanlab_completion_log_interval "
        "swanlab_completion_max_buffer use_tensorboard use_trackio trackio_project_name trackio_run_name"
        " trackio_space_id profiler_steps profiler_steps_start eval_table_size eval_table_max_new_tokens"
        " logging_steps include_tkps use_otel_metrics otel_metrics_host otel_metrics_port",
        unneeded(JOURNAL),
    ),
    **each("hub_model_id hub_strategy hub_revision hf_use_auth_token", unneeded(NO_UPLOAD)),
    **each(
        "strict axolotl_config_path base_model_details plugins_dir experimental_skip_move_to_device "
        "merge_lora merge_method vllm gradio_title gradio_share gradio_server_name gradio_server_port",
        unneeded("belongs to how Axolotl is started"),
    ),
    **each(
        "early_stopping_patience loss_watchdog_threshold loss_watchdog_patience",
        different("a stage ends after its steps; a guard or a stop ends it earlier"),
    ),
    **each(
        "eval_max_new_tokens do_causal_lm_eval eval_causal_lm_metrics do_bench_eval bench_dataset "
        "bench_split generate_samples num_generation_samples generation_max_new_tokens",
        unneeded(GENERATION),
    ),
    **each("noisy_embedding_alpha", different("no noise is added to embeddings")),
    **each("lisa_n_layers lisa_step_interval lisa_layers_attribute", different("all layers are trained together")),
    **each(
        "relora_steps relora_warmup_steps relora_anneal_steps relora_prune_ratio relora_prune_method "
        "relora_cpu_offload jagged_restart_steps jagged_restart_warmup_steps jagged_restart_anneal_steps",
        different(METHODS["relora"]),
    ),
    **each("embedding_lr embedding_lr_scale lr_groups", different("all layers have the same learning rate")),
    **each(
        "cosine_constant_lr_ratio lr_quadratic_warmup lr_div_factor log_sweep_min_lr log_sweep_max_lr",
        different("the schedule has no such part"),
    ),
    **each("adam_beta3 adam_epsilon2", different("AdamW has no such value")),
    **each(
        "rl_beta dpo_beta orpo_alpha rpo_alpha simpo_gamma cpo_alpha kto_desirable_weight "
        "kto_undesirable_weight trl dpo_use_weighting dpo_label_smoothing dpo_norm_loss dpo_padding_free"
        " max_prompt_len num_labels dpo_use_logits_to_keep dpo_generate_during_eval "
        "precompute_ref_log_probs dpo_loss_type dpo_loss_weights",
        different(METHOD_PART),
    ),
    **each(
        "kd_trainer kd_ce_alpha kd_alpha kd_temperature kd_online_server_base_url kd_zscore_base_temp "
        "kd_online_topk kd_online_server kd_online_timeout kd_normalize_topk kd_beta "
        "kd_top_k_before_softmax kd_online_server_api_key",
        different("no stage kind trains on another model's probabilities"),
    ),
    **each("image_size image_resize_algorithm vision_tower mm_vision_tower", unneeded(NO_IMAGES)),
    "float32": unneeded("all weights are in 32 bits"),
    "float16": different("float16 is not supported: computes in float32; set bf16 = true for bfloat16"),
    "bf32": unneeded("all weights are in 32 bits"),
}
"""Keys that need no look at other keys."""

KNOWN = (
    *RULES, *OWN, "base_model", "adapter", "lora_model_dir", "lora_target_modules", "lora_target_linear", "datasets",
    "pretraining_dataset", "val_set_size", "dataset_exact_deduplication", "chat_template", "chat_template_jinja",
    "special_tokens", "train_on_inputs", "batch_size", "lr_scheduler", "lr_scheduler_kwargs", "cosine_min_lr_ratio",
    "warmup_steps", "warmup_ratio", "save_steps", "save_strategy", "saves_per_epoch", "eval_steps", "eval_strategy",
    "evaluation_strategy", "evals_per_epoch", "bf16", "fp16", "bfloat16", "seed", "max_steps",
    "gradient_checkpointing", "plugins",
)  # fmt: skip
"""Every key that has a meaning here."""


def convert(draft: Draft) -> None:
    """Give every key its outcome, and fill the stages."""
    _method(draft)
    draft.apply(OWN | {key: rule for key, rule in RULES.items() if key not in OWN})
    steps(draft)
    schedule(draft, "lr_scheduler", "cosine_min_lr_ratio")
    _when(draft)
    precision(draft, default="base_model" in draft.config.entries, pure="bfloat16")
    seeds(draft)
    _checkpointing(draft)
    draft.apply({"base_model": to("model", lambda value: place(draft, text(value)))})
    draft.apply({"lora_model_dir": to("start_from", lambda value: place(draft, text(value)))})
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
    """`adapter`: without one, Axolotl trains all weights."""
    entry = draft.take("adapter")
    if entry is None:
        if "base_model" in draft.config.entries:
            unset = draft.config.entries.get("adapter", Entry("adapter", None, 0))
            draft.note(unset, "missing", says=f"without an adapter, Axolotl trains all weights: {FULL}")
    elif entry.value in ("lora", "qlora"):
        draft.note(entry, "imported", says="a finetune stage trains LoRA")
    else:
        draft.note(entry, "missing", says=FULL)


def _when(draft: Draft) -> None:
    for key, says in (("saves_per_epoch", "save_steps"), ("evals_per_epoch", "eval_steps")):
        draft.apply({key: different(f"{says} is not set: {EPOCHS}")})
    saving(draft, None)
    evaluating(draft, "eval_strategy", "evaluation_strategy")


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
    elif isinstance(named.value, str) and any(sign in named.value for sign in "()|*[\\"):
        says = "layers are named, not selected by a pattern; target_modules is left at its default"
        draft.note(named, "different", says=says)
    else:
        draft.apply({"lora_target_modules": to("target_modules", names)})


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
