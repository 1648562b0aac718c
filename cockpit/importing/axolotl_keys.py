"""Axolotl's keys that need no look at other keys, with what each means in a recipe."""

from __future__ import annotations

from cockpit.importing.draft import (
    Rule,
    choice,
    different,
    each,
    flag,
    missing,
    names,
    number,
    switch,
    to,
    unneeded,
    whole,
)
from cockpit.importing.meanings import (
    ADAPTER,
    BITSANDBYTES,
    EIGHT_BITS,
    FULL,
    GENERATION,
    METHOD_PART,
    NO_TOKENS,
    OTHER_METHOD,
    PADDING,
    ROPE,
    SELECTED,
    WHOLE_PAIR,
    initial,
)
from cockpit.importing.sources import NO_IMAGES
from cockpit.importing.training_arguments import BY_LAUNCH, JOURNAL, NO_UPLOAD, SPEED, optimizer

METHODS = {
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
    "load_in_4bit": switch("load_in_4bit", flag),
    "load_in_8bit": different(EIGHT_BITS),
    **each("gptq gptq_groupsize gptq_model_v1 qat quantization fp8 nvfp4", different(BITSANDBYTES)),
    **each("loftq peft", different(ADAPTER)),
    "qlora_sharded_model_loading": different(BY_LAUNCH),
    "peft_use_dora": switch("use_dora", flag),
    **SELECTED,
    **each("peft_layers_pattern peft_layer_replication", different(ADAPTER)),
    "peft_init_lora_weights": to("init_lora_weights", initial),
    "lora_modules_to_save": switch("modules_to_save", names),
    "peft_trainable_token_indices": different("embeddings are trained as a whole, by modules_to_save, or not at all"),
    **each("peft_ensure_weight_tying peft_autocast_adapter_dtype", unneeded("the adapter is in 32 bits")),
    **each("lora_fan_in_fan_out lora_on_cpu lora_out_dir", unneeded("found by the model's layers")),
    "loraplus_lr_ratio": different("both matrices of the adapter have the same learning rate"),
    "loraplus_lr_embedding": unneeded("belongs to loraplus_lr_ratio"),
    "sample_packing": to("packing", flag),
    "max_packed_sequence_len": different("a packed sequence has max_length tokens"),
    "batch_flattening": unneeded(PADDING),
    **each(
        "eval_sample_packing pad_to_sequence_len sample_packing_eff_est sample_packing_group_size "
        "sample_packing_bin_size sample_packing_sequentially multipack_real_batches "
        "pretrain_multipack_buffer_size pretrain_multipack_attn total_num_tokens total_supervised_tokens"
        " pretraining_sample_concatenation",
        unneeded(PADDING),
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
    "excess_length_strategy": to("truncation", choice({"drop": "drop", "truncate": "answer", "raise": "error"})),
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
        different(BY_LAUNCH),
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
        "loss_watchdog_threshold loss_watchdog_patience",
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
    **each("rl_beta dpo_beta", to("beta", number)),
    "dpo_use_weighting": switch("use_weighting", flag),
    "dpo_label_smoothing": switch("label_smoothing", number),
    "dpo_padding_free": to("padding_free", flag),
    "precompute_ref_log_probs": switch("precompute_ref_log_probs", flag),
    "dpo_norm_loss": different("the loss is not divided by lengths; loss_type sigmoid_norm is"),
    "max_prompt_len": different(WHOLE_PAIR),
    "dpo_use_logits_to_keep": unneeded(SPEED),
    "dpo_generate_during_eval": unneeded(GENERATION),
    **each(
        "orpo_alpha simpo_gamma cpo_alpha kto_desirable_weight kto_undesirable_weight num_labels",
        unneeded(OTHER_METHOD),
    ),
    **each(
        "kd_trainer kd_ce_alpha kd_alpha kd_temperature kd_online_server_base_url kd_zscore_base_temp "
        "kd_online_topk kd_online_server kd_online_timeout kd_normalize_topk kd_beta "
        "kd_top_k_before_softmax kd_online_server_api_key",
        different("no stage kind trains on another model's probabilities"),
    ),
    **each("image_size image_resize_algorithm vision_tower mm_vision_tower", unneeded(NO_IMAGES)),
    **each(
        "use_eaft eaft_alpha eaft_k scaling_softmax_factor scaling_softmax_bias center_rewards_coefficient",
        different("the loss is cross-entropy"),
    ),
    **each(
        "dion_lr dion_momentum dion_rank_fraction dion_rank_multiple_of qgalore_rank "
        "qgalore_update_proj_gap qgalore_scale qgalore_proj_type qgalore_proj_quant qgalore_proj_bits "
        "qgalore_proj_group_size qgalore_cos_threshold qgalore_gamma_proj qgalore_queue_size "
        "grokfast_alpha grokfast_lamb",
        different("the optimizer is AdamW"),
    ),
    **each("use_mora mora_type mora", different(ADAPTER)),
    **each("spectrum_top_fraction spectrum_model_name reinit_weights freeze_mm_modules", different(FULL)),
    **each(
        "dense_mixer trainer_cls role_boundaries recipe llmcompressor", different("code of plugins is never executed")
    ),
    **each(
        "lm_eval_tasks lm_eval_batch_size lm_eval_post_train lm_eval_model", different("no benchmark is run after it")
    ),
    **each("kd_temperature_min", different("no stage kind trains on another model's probabilities")),
    **each(
        "selective_checkpointing sage_attention gemma4_hybrid_attn_impl large_head_attention "
        "flash_attn_d512 sdpa_varlen tiled_mlp_use_original_mlp deepcompile fp32_norms fp32_norm_classes"
        " torch_compile_options gc_collect_steps fp8_enable_fsdp_float8_all_gather dpo_use_liger_kernel "
        "pad_to_multiple_of expert_backend moe_grouped_backend moe_dequant_chunk_size moe_bnb_fast "
        "dsv4_fp8_nonexpert_mode dsv4_fp8_lora_kernel dsv4_shared_mlp_lora_kernel dsv4_bf16_all "
        "dsv4_fp4_grouped_mode gemma4_fp8_nonexpert gemma4_nf4_nonexpert nvfp4_merge_aware "
        "nvfp4_merge_aware_start_step nonexpert_quantization",
        unneeded(SPEED),
    ),
    **each(
        "expert_parallel_backend expert_parallel_num_nvl_bytes expert_parallel_num_rdma_bytes "
        "expert_parallel_token_capacity expert_parallel_fallback_on_unsupported",
        different(BY_LAUNCH),
    ),
    **each(
        "generation_temperature generation_top_p generation_top_k generation_prompt_ratio "
        "generation_do_sample gradio_max_new_tokens gradio_temperature",
        unneeded(GENERATION),
    ),
    **each("swanlab_web_host swanlab_api_host swanlab_lark_webhook_url swanlab_lark_secret", unneeded(JOURNAL)),
    **each(
        "num_dataset_shards_to_save dataset_num_proc sample_packing_mp_start_method",
        unneeded("rows are read in a stream"),
    ),
    "eval_sequence_len": different("max_length is the same for an evaluation"),
    **each(
        "dynamic_checkpoint save_first_step save_compressed",
        different("a checkpoint is written each save_steps, and at a stop"),
    ),
    **each("processor_kwargs env_capabilities capabilities", unneeded("the model's folder says what it is")),
    "float16": different("trained weights are in 32 bits; set fp16 = true to compute in float16"),
    "bf32": unneeded("trained weights are in 32 bits"),
}
"""Keys that need no look at other keys."""
