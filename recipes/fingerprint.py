"""The fingerprint of a stage: a hash of what its result depends on. A finished stage reruns only if it changes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

FORMAT = 1
LEFT_OUT = frozenset({"name", "python", "threads", "devices", "retry", "gate", "overwrite_output_dir"})
"""Fields that do not change what a stage produces.

The name already identifies the stage. `python`, `threads` and `devices` decide where and how fast it runs. `retry`
matters only after a failed attempt, `overwrite_output_dir` only where the files are placed. Gates judge the result and
are checked again without a rerun of the stage.
"""

ADDED_LATER: Mapping[str, Any] = {
    "allow_code_execution": False,
    "alpha_pattern": {},
    "answer_batch_size": 1,
    "async_save": True,
    "backend": "hf",
    "base_dtype": "auto",
    "baseline": None,
    "bias": "none",
    "bnb_4bit_compute_dtype": "auto",
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": False,
    "byte_proof": "all",
    "chat_template": "",
    "checks": [],
    "clean": [],
    "code_timeout_s": 10,
    "columns": {},
    "command": [],
    "command_folder": None,
    "decay_type": "cosine",
    "deterministic": False,
    "document_masking": False,
    "duplicates": "keep",
    "early_stopping_patience": None,
    "early_stopping_threshold": 0.0,
    "encoding": None,
    "eos_token": None,
    "eval_strategy": "steps",
    "exclude_sources": [],
    "file_name": None,
    "files": None,
    "float32_matmul_precision": "auto",
    "fold_system": False,
    "fp16": None,
    "format": "auto",
    "generated": "drop",
    "greater_is_better": None,
    "group_by": ["group", "prompt"],
    "hang_at_step": None,
    "head_dim": None,
    "ignore_keys": [],
    "init_lora_weights": "true",
    "lm_eval_chat_template": False,
    "lm_eval_include_path": None,
    "lm_eval_limit": None,
    "lm_eval_num_fewshot": None,
    "lm_eval_python": None,
    "lm_eval_tasks": [],
    "judge_command": [],
    "judge_key_env": "",
    "judge_model": "",
    "judge_rubric": "",
    "judge_url": None,
    "keywords": [],
    "label_smoothing_factor": 0.0,
    "launch": {"processes": 1, "nodes": 1, "rendezvous": "", "strategy": "single", "launcher": []},
    "languages": ["python", "c", "cpp", "javascript", "typescript", "go", "rust", "java"],
    "layers_to_transform": [],
    "licenses": [],
    "linear": "float",
    "llm_int8_skip_modules": [],
    "load_best_model_at_end": False,
    "load_in_4bit": False,
    "lr_end": 1e-7,
    "max_document_bytes": None,
    "max_file_chars": 2000,
    "max_position_embeddings": None,
    "max_shard_size": "50GB",
    "max_source_bytes": 1_048_576,
    "metric_for_best_model": "eval_loss",
    "mixture_temperature": 1.0,
    "model_type": "llama",
    "modules_to_save": [],
    "near_duplicate_similarity": 0.8,
    "near_duplicates": "ignore",
    "neftune_noise_alpha": None,
    "num_cycles": 1,
    "num_decay_steps": 0.1,
    "on_bad_row": "error",
    "output": "adapter",
    "output_dir": None,
    "packing": False,
    "padding_free": True,
    "peak_tflops": None,
    "power": 1.0,
    "probe_rows": None,
    "rank_pattern": {},
    "repeat_build": 1,
    "repeat_stack": 1,
    "report_to": [],
    "rope_parameters": {
        "rope_type": "default",
        "factor": None,
        "original_max_position_embeddings": None,
        "low_freq_factor": None,
        "high_freq_factor": None,
    },
    "save_strategy": "steps",
    "sliding_window": None,
    "shard_tokens": None,
    "split_by": "document",
    "start_from": None,
    "target_bits": None,
    "target_tokens": 2048,
    "tensor_types": {},
    "test_data": None,
    "test_rows": None,
    "tests": "rows",
    "torch_compile": False,
    "train_on": "answers",
    "train_on_template": False,
    "train_sampling_strategy": "random",
    "truncation": "drop",
    "unknown_license": "keep",
    "use_dora": False,
    "use_liger_kernel": False,
    "val_rows": None,
    "vendored": "drop",
    "wait_at_step": None,
    "wait_s": 60.0,
    "where": [],
    "num_return_sequences": 1,
    "sampling_seed": 0,
    "temperature": 0.0,
    "top_k": 0,
    "top_p": 1.0,
}
"""Fields that runs of older versions do not have, with the value that means the same: it is left out too."""

ADDED_TO_TABLES: Mapping[str, Mapping[str, Any]] = {
    "guards": {"loss_spike": 10.0, "no_improvement": None, "no_improvement_on": "loss", "wall_clock_s": None},
}
"""The same for keys of tables. A guard of a stage that succeeded has not changed its result."""


LEFT_OUT_OF_TABLES: Mapping[str, frozenset[str]] = {"launch": frozenset({"rendezvous", "launcher"})}
"""Keys of tables that do not change what a stage produces: where processes meet, and which program starts them."""

LEFT_OUT_OF_KINDS: Mapping[str, frozenset[str]] = {"evaluate": frozenset({"launch"})}
"""Fields that do not change what a stage of one kind produces: processes that divide rows give the same answers."""

ADDED_TO_KINDS: Mapping[str, Mapping[str, Any]] = {
    "evaluate": {"dtype": "auto", "max_tokens_from": "start"},
    "tokenizer": {"algorithm": "sentencepiece"},
}
"""The same for fields of one kind, whose names other kinds have had before."""


def fingerprint(stage: Mapping[str, Any], parent_hashes: Iterable[str]) -> str:
    """SHA-256 (hex) of a stage's kind, its resolved fields and its inputs.

    Args:
        stage: every field with its value, as JSON data.
        parent_hashes: the SHA-256 of the manifest of each input, in the order of the fields' names.
    """
    fields = {
        key: _as_before(key, value)
        for key, value in stage.items()
        if key not in LEFT_OUT | LEFT_OUT_OF_KINDS.get(str(stage.get("kind")), frozenset())
        and not _is_as_before(str(stage.get("kind")), key, value)
    }
    content = {"format": FORMAT, "stage": fields, "inputs": list(parent_hashes)}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def _is_as_before(kind: str, key: str, value: Any) -> bool:
    added = {**ADDED_LATER, **ADDED_TO_KINDS.get(kind, {})}
    return key in added and _as_before(key, value) == _as_before(key, added[key])


def _as_before(key: str, value: Any) -> Any:
    added, left_out = ADDED_TO_TABLES.get(key, {}), LEFT_OUT_OF_TABLES.get(key, frozenset())
    if not isinstance(value, Mapping) or not (added or left_out):
        return value
    return {
        name: item
        for name, item in value.items()
        if name not in left_out and (name not in added or item != added[name])
    }
