"""What the keys of a LLaMA-Factory configuration mean in a recipe.

Facts: `hparams/*_args.py` and `data/parser.py` of LLaMA-Factory, `transformers.TrainingArguments`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
from cockpit.importing.llama_factory_data import REGISTRY, EntryError, source_of
from cockpit.importing.meanings import (
    ALL_WEIGHTS_SAYS,
    BITSANDBYTES,
    FULL,
    GENERATION,
    METHOD_PART,
    NO_TOKENS,
    NO_TRAINING,
    OTHER_METHOD,
    REFERENCE,
    ROPE,
    UNSLOTH_ENVIRONMENT,
    bits,
    chosen_too,
    losses,
)
from cockpit.importing.sources import NO_IMAGES, ONE_SOURCE, find_path, place, put_source
from cockpit.importing.templates import LLAMA_FACTORY_TEMPLATES, chat_template
from cockpit.importing.training_arguments import (
    BY_LAUNCH,
    NO_UPLOAD,
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
from cockpit.importing.yaml_text import read_json_document
from engines.files import read_regular_text
from recipes.problems import OperatorError
from recipes.stages.adapter.fields import ALL_LINEAR
from recipes.stages.training import MUON

PROGRAM = "LLaMA-Factory"
MAX_REGISTRY_BYTES = 4 * 1024 * 1024


def targets(value: Any) -> list[str]:
    """The layers of an adapter; `all` is every linear layer."""
    found = names(value)
    return [ALL_LINEAR] if found == ["all"] else found


OWN: dict[str, Rule] = {
    "cutoff_len": to("max_length", whole),
    "lora_rank": to("r", whole),
    "lora_alpha": to("lora_alpha", number),
    "lora_dropout": to("lora_dropout", number),
    "lora_target": to("target_modules", targets),
    "use_rslora": to("use_rslora", flag),
    "max_samples": to("data.max_examples", whole),
    "stage": missing(METHOD_PART, "sft", "pt", "dpo"),
    "finetuning_type": missing(FULL, "lora", "full"),
    "quantization_bit": switch("load_in_4bit", bits),
    "quantization_type": to("bnb_4bit_quant_type", text),
    "double_quantization": to("bnb_4bit_use_double_quant", flag),
    "quantization_method": different(BITSANDBYTES, "bnb", "bitsandbytes"),
    "quantization_device_map": unneeded(SPEED),
    "use_dora": switch("use_dora", flag),
    "pissa_convert": unneeded("the output is a plain LoRA adapter anyway"),
    "loraplus_lr_ratio": different("both matrices of the adapter have the same learning rate"),
    "loraplus_lr_embedding": unneeded("belongs to loraplus_lr_ratio"),
    "additional_target": switch("modules_to_save", names),
    "create_new_adapter": different("start_from continues the adapter that it names"),
    "adapter_folder": different("give the path of the adapter itself"),
    "neat_packing": to("packing", flag),
    "packing": to("packing", flag),
    **each(
        "streaming buffer_size preprocessing_batch_size preprocessing_num_workers overwrite_cache "
        "tokenized_path ignore_pad_token_for_loss data_shared_file_system cache_dir offload_folder",
        unneeded("rows are read in a stream, and nothing has to be prepared before"),
    ),
    **each("mix_strategy interleave_probs", different(ONE_SOURCE, "concat")),
    "eval_dataset": different("the val split is a file of its own beside the training rows (val.jsonl), or held out"),
    "eval_on_each_dataset": different("the val split is evaluated as a whole"),
    "disable_shuffling": different("rows are taken in random order"),
    "media_dir": unneeded(NO_IMAGES),
    **each(
        "image_max_pixels image_min_pixels video_max_pixels video_min_pixels video_fps video_maxlen "
        "image_resolution video_resolution use_audio_in_video audio_sampling_rate image_do_pan_and_scan "
        "crop_to_patches freeze_vision_tower freeze_multi_modal_projector freeze_language_model",
        unneeded(NO_IMAGES),
    ),
    "tool_format": different("the model's chat template writes the tools"),
    "default_system": different("a row without a system turn gets what the chat template writes"),
    "enable_thinking": different("the chat template decides about reasoning; cockpit rows shows what it writes"),
    "efficient_eos": unneeded("the token that ends a turn is scored once"),
    "preserve_thinking": different("the chat template decides about reasoning; cockpit rows shows what it writes"),
    **each("add_tokens add_special_tokens new_special_tokens_config resize_vocab", different(NO_TOKENS)),
    "init_special_tokens": unneeded("belongs to add_special_tokens"),
    "split_special_tokens": unneeded("the text of a row never becomes a control token"),
    "use_fast_tokenizer": unneeded("the tokenizer is read from tokenizer.json"),
    "model_revision": different(
        "the newest revision in the local cache is used; name a folder for another one", "main"
    ),
    "rope_scaling": different(ROPE),
    "shift_attn": different("attention is not shifted"),
    "mixture_of_depths": missing("no stage kind changes a model's layers"),
    "train_from_scratch": missing("a pretrain stage trains a new model on tokens; a fine-tuning needs a trained one"),
    "enable_liger_kernel": switch(
        "use_liger_kernel", flag, "its loss is not used: logits are computed where labels are"
    ),
    "moe_aux_loss_coef": different("no loss is added for the balance of experts"),
    "use_unsloth": switch("backend", lambda _value: "unsloth", UNSLOTH_ENVIRONMENT),
    **each(
        "flash_attn use_unsloth_gc use_kv_cache use_v1_kernels "
        "use_kernels use_kt use_reentrant_gc infer_dtype low_cpu_mem_usage print_param_status use_sdpa "
        "use_swift use_ktransformers",
        unneeded(SPEED),
    ),
    **each("upcast_layernorm upcast_lmhead_output", unneeded("norms and the loss are computed in 32 bits")),
    **each("fp8 fp8_backend fp8_enable_fsdp_float8_all_gather", different("computes in float32 or bfloat16", "auto")),
    **each("hf_hub_token ms_hub_token om_hub_token", unneeded("nothing is downloaded")),
    **each(
        "use_badam badam_mode badam_start_block badam_switch_mode badam_switch_interval "
        "badam_update_ratio badam_mask_mode badam_verbose use_galore galore_target galore_rank "
        "galore_update_interval galore_scale galore_proj_type galore_layerwise use_apollo apollo_target "
        "apollo_rank apollo_update_interval apollo_scale apollo_proj apollo_proj_type apollo_scale_type "
        "apollo_layerwise apollo_scale_front use_adam_mini",
        different("the optimizer is AdamW"),
    ),
    **each("use_dft_loss use_eaft_loss eaft_alpha use_asft_loss asft_alpha", different("the loss is cross-entropy")),
    "use_llama_pro": missing("no stage kind adds layers to a model"),
    **each("freeze_trainable_layers freeze_trainable_modules freeze_extra_modules", different("belongs to freeze")),
    **each("oft_rank oft_block_size oft_target module_dropout", different("belongs to OFT, which no stage kind has")),
    "pref_beta": to("beta", number),
    "ld_alpha": to("ld_alpha", number),
    "dpo_label_smoothing": different("the loss sigmoid is not smoothed; robust is, by label_smoothing"),
    "pref_bco_weight": different("no loss with a moving baseline is added"),
    **each("ref_model ref_model_adapters ref_model_quantization_bit", different(REFERENCE)),
    **each(
        "kto_chosen_weight kto_rejected_weight simpo_gamma ppo_buffer_size ppo_epochs ppo_score_norm ppo_target "
        "ppo_whiten_rewards reward_model reward_model_adapters reward_model_quantization_bit reward_model_type",
        unneeded(OTHER_METHOD),
    ),
    "compute_accuracy": unneeded("loss and perplexity are measured"),
    **each("plot_loss include_effective_tokens_per_second include_mfu", unneeded("cockpit metrics draws the curves")),
    **each(
        "use_swanlab swanlab_project swanlab_workspace swanlab_run_name swanlab_mode swanlab_api_key "
        "swanlab_logdir swanlab_lark_webhook_url swanlab_lark_secret",
        unneeded("nothing is sent elsewhere"),
    ),
    **each(
        "use_megatron_bridge megatron_bridge_args hyper_parallel_args hyper_parallel_cp_size "
        "mixed_precision virtual_pipeline_model_parallel_size recompute_method recompute_num_layers "
        "use_packed_sequences extra_config account_for_embedding_in_pipeline_split "
        "account_for_loss_in_pipeline_split masked_softmax_fusion cross_entropy_loss_fusion "
        "calculate_per_token_loss megatron_pretrained_checkpoint export_hf_on_finish",
        different(BY_LAUNCH),
    ),
    **each(
        "kt_config kt_cpu_activation kt_weight_path kt_non_expert_weight_path kt_expert_checkpoint_path "
        "kt_use_lora_experts kt_lora_expert_num kt_lora_expert_intermediate_size",
        different("experts are not moved to the CPU"),
    ),
    **each("sglang_lora_backend device_map compute_dtype block_diag_attn model_max_length", unneeded(SPEED)),
    **each(
        "enable_torch_profiler profiler_output_dir profiler_wait_steps profiler_warmup_steps "
        "profiler_active_steps profiler_repeat profiler_record_shapes profiler_profile_memory "
        "profiler_with_stack profile_modules",
        unneeded("nothing is profiled"),
    ),
    **each("task task_dir batch_size lang n_shot save_dir download_mode", unneeded("belongs to a benchmark")),
    **each(
        "tensor_model_parallel_size pipeline_model_parallel_size expert_model_parallel_size "
        "context_parallel_size sequence_parallel use_distributed_optimizer overlap_param_gather "
        "overlap_grad_reduce moe_grouped_gemm moe_token_dispatcher_type recompute_granularity "
        "bias_activation_fusion apply_rope_fusion",
        different(BY_LAUNCH),
    ),
    **each(
        "ray_run_name ray_storage_path ray_storage_filesystem ray_num_workers ray_init_kwargs "
        "placement_strategy resources_per_worker use_mca use_hyper_parallel master_addr master_port",
        different(BY_LAUNCH),
    ),
    **each(
        "do_predict predict_with_generate max_new_tokens top_p top_k temperature do_sample num_beams "
        "eval_num_beams generation_max_length generation_num_beams infer_backend vllm_maxlen "
        "vllm_gpu_util vllm_enforce_eager vllm_max_lora_rank vllm_config sglang_maxlen "
        "sglang_mem_fraction sglang_tp_size sglang_config skip_special_tokens repetition_penalty "
        "length_penalty max_length",
        unneeded(GENERATION),
    ),
}
"""Keys that need no look at other keys."""

EXPORT: dict[str, Rule] = {
    "export_dir": to(f"{MERGED}.output_dir", text),
    **each(
        "export_size export_device export_legacy_format",
        unneeded("a merge writes safetensors, one tensor after another"),
    ),
    **each(
        "export_quantization_bit export_quantization_dataset export_quantization_nsamples export_quantization_maxlen",
        different("a merge keeps the base's type; cockpit export writes quantized GGUF files"),
    ),
    "export_hub_model_id": unneeded(NO_UPLOAD),
}

KNOWN = (
    *RULES, *OWN, *EXPORT, "pissa_init", "pissa_iter", "pref_loss", "pref_ftx", "model_name_or_path",
    "adapter_name_or_path", "template", "dataset", "dataset_dir",
    "train_on_prompt", "mask_history", "val_size", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps",
    "warmup_ratio", "save_steps", "save_strategy",
    "early_stopping_steps", "load_best_model_at_end", "eval_steps", "eval_strategy", "evaluation_strategy",
    "bf16", "fp16",
    "pure_bf16", "seed", "max_steps", "gradient_checkpointing", "activation_checkpointing",
    "disable_gradient_checkpointing",
)  # fmt: skip
"""Every key that has a meaning here."""


def convert(draft: Draft) -> None:
    """Give every key its outcome, and fill the stages."""
    training = not is_off(draft.value("do_train"))
    if not is_off(draft.value("export_dir")) and not training:
        _merge(draft)
    else:
        if not training and (draft.value("dataset") is None or not is_off(draft.value("do_predict"))):
            draft.outcomes.append(Outcome("do_train", None, 0, "missing", (), NO_TRAINING))
        _train(draft)
    draft.finish(KNOWN)


def _merge(draft: Draft) -> None:
    draft.apply({"model_name_or_path": to(f"{MERGED}.model", lambda value: place(draft, text(value)))})
    read = draft.read("adapter_name_or_path", names)
    if read is not None:
        entry, found = read[0], [place(draft, name) for name in read[1]]
        single = len(found) == 1
        draft.set(entry, f"{MERGED}.adapter{'' if single else 's'}", found[0] if single else found)
    elif "adapter_name_or_path" not in draft.config.entries:
        says = "a merge needs an adapter; without one there is nothing to merge"
        draft.outcomes.append(Outcome("adapter_name_or_path", None, 0, "missing", (), says))
    draft.apply(EXPORT)
    draft.apply(each("template finetuning_type trust_remote_code infer_dtype", unneeded("a merge reads the weights")))


def _train(draft: Draft) -> None:
    _method(draft)
    draft.apply(OWN)
    _initial(draft)
    losses(draft, "pref_loss")
    chosen_too(draft, "pref_ftx", "its mean counts tokens alike; LLaMA-Factory's counts answers alike")
    draft.apply(RULES)
    _muon(draft)
    steps(draft)
    schedule(draft)
    saving(draft, 500)
    evaluating(draft, "eval_strategy", "evaluation_strategy")
    best_at_end(draft)
    precision(draft, default=False, pure="pure_bf16")
    seeds(draft)
    _checkpointing(draft)
    draft.apply({"model_name_or_path": to("model", lambda value: place(draft, text(value)))})
    _adapter(draft)
    _scored(draft)
    held_out(draft, "val_size")
    chat_template(draft, "template", LLAMA_FACTORY_TEMPLATES)
    _data(draft)
    draft.apply(EXPORT | {"export_dir": unneeded("belongs to a merge")})
    for name, value, key in (
        ("max_length", 2048, "cutoff_len"),
        ("truncation", "answer", ""),
        ("r", 8, "lora_rank"),
        ("target_modules", [ALL_LINEAR], "lora_target"),
        ("learning_rate", 5e-5, ""),
        ("num_train_epochs", 3.0, ""),
        ("lr_scheduler_type", "linear", ""),
    ):
        draft.default(f"{TUNED}.{name}", value, key)
    if draft.get(f"{TUNED}.load_in_4bit"):
        draft.default(f"{TUNED}.bnb_4bit_use_double_quant", True, "double_quantization")
    if (rank := draft.get(f"{TUNED}.r")) is not None:
        draft.default(f"{TUNED}.lora_alpha", 2.0 * rank, "lora_alpha")


def _method(draft: Draft) -> None:
    """`stage` and `finetuning_type` choose the type of the stage that trains."""
    pairs, full = draft.value("stage") == "dpo", draft.value("finetuning_type") == "full"
    draft.choose(pairs=pairs, all_weights=full)
    if pairs and (entry := draft.take("stage")) is not None:
        draft.note(entry, "imported", says="a dpo stage trains on pairs of answers")
    if full and (entry := draft.take("finetuning_type")) is not None:
        draft.note(entry, "imported", says=ALL_WEIGHTS_SAYS)


def _muon(draft: Draft) -> None:
    """`use_muon` comes before `optim`."""
    if not is_off(draft.value("use_muon")):
        draft.drop(f"{TUNED}.optim", "unneeded", "use_muon decides")
    draft.apply({"use_muon": switch("optim", lambda _: MUON)})


def _initial(draft: Draft) -> None:
    """`pissa_init` with `pissa_iter`, the steps of a fast decomposition, of which -1 means an exact one."""
    count = draft.read("pissa_iter", whole)
    steps = 16 if count is None else count[1]
    name = "pissa" if steps == -1 else f"pissa_niter_{steps}"
    draft.apply({"pissa_init": switch("init_lora_weights", lambda value: name if flag(value) else "true")})
    if count is not None and draft.get(f"{TUNED}.init_lora_weights") == name:
        draft.note(count[0], "imported", [f"{TUNED}.init_lora_weights"])
    elif count is not None:
        draft.note(count[0], "unneeded", says="belongs to pissa_init")


def _checkpointing(draft: Draft) -> None:
    """LLaMA-Factory recomputes activations unless it is disabled."""
    name = f"{TUNED}.gradient_checkpointing"
    draft.apply(each("gradient_checkpointing activation_checkpointing", to("gradient_checkpointing", flag)))
    entry = draft.take("disable_gradient_checkpointing")
    if entry is not None:
        draft.set(entry, name, is_off(entry.value))
    draft.default(name, True, "disable_gradient_checkpointing")


def _adapter(draft: Draft) -> None:
    read = draft.read("adapter_name_or_path", names)
    if read is None:
        return
    entry, found = read
    if len(found) > 1:
        draft.note(entry, "different", says="start_from takes one adapter; merge them first")
    elif draft.all_weights:
        draft.note(entry, "different", says="merge the adapter first, and name the merged model")
    elif draft.set(entry, f"{TUNED}.start_from", place(draft, found[0])) and draft.on_pairs:
        draft.again(
            entry.key,
            "different",
            "start_from is set, and its adapter is the reference too; LLaMA-Factory's"
            " reference is the model without it",
        )


def _scored(draft: Draft) -> None:
    """Which tokens are scored: answers, everything, or the last answer."""
    for key, word in (("train_on_prompt", "all"), ("mask_history", "last-answer")):
        entry = draft.take(key)
        if entry is not None and is_off(entry.value):
            draft.note(entry, "unneeded", says="answers are scored, as here")
        elif entry is not None:
            draft.set(entry, f"{TUNED}.train_on", word)


def _data(draft: Draft) -> None:
    """The data sets, by LLaMA-Factory's registry; pretraining reads their text."""
    folder = "data"
    if (there := draft.read("dataset_dir", text)) is not None:
        folder = there[1]
        draft.note(there[0], "unneeded", says=f"the folder of {REGISTRY}")
    read = draft.read("dataset", names)
    if read is None:
        return
    entry, wanted = read
    found = find_path(draft, REGISTRY, folder)
    says = f"; {ONE_SOURCE}: left out are {', '.join(map(plain, wanted[1:]))}" if len(wanted) > 1 else ""
    registry = read_registry(found) if found is not None else None
    if registry is None:
        where = plain(f"{folder}/{REGISTRY}", 200)
        draft.note(entry, "different", says=f"no {where} here, beside the file or above it; set data yourself{says}")
        return
    described = registry.get(wanted[0])
    if not isinstance(described, dict):
        draft.note(entry, "different", says=f"{found} has no data set of this name; set data yourself{says}")
        return
    try:
        source = source_of(draft, ("dataset", wanted[0]), described, str(Path(str(found)).parent), pairs=draft.on_pairs)
    except EntryError as error:
        draft.note(entry, "missing", says=f"{plain(wanted[0])}: {error}")
        return
    if draft.value("stage") == "pt" and source.format != "text":
        source.format = "text"
    problem = put_source(draft, source)
    says = says.removeprefix("; ")
    draft.note(entry, "different" if says or problem else "imported", _set_fields(draft), problem or says)


def _set_fields(draft: Draft) -> list[str]:
    words = ("data", "format", "columns", "ignore_keys")
    return [f"{stage}.{name}" for stage, fields in draft.stages.items() for name in fields if name in words]


def read_registry(path: Path) -> Mapping[str, Any] | None:
    """The data sets of a registry; None if the file is not one.

    Raises:
        OperatorError: the file cannot be read, or is not JSON.
    """
    try:
        value = read_json_document(read_regular_text(path, MAX_REGISTRY_BYTES), path).value
    except (OSError, ValueError) as error:
        raise OperatorError(f"{path} cannot be read: {error}") from None
    return value if isinstance(value, dict) else None
