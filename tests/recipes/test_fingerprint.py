"""A finished stage of an older run keeps its fingerprint: new fields at their defaults are not part of it."""

from __future__ import annotations

import pytest

from recipes.fingerprint import ADDED_LATER, ADDED_TO_KINDS, LEFT_OUT, fingerprint
from recipes.stages.fields import Strict
from recipes.stages.registry import STAGE_TYPES

_TRAINING = (
    "max_length per_device_train_batch_size gradient_accumulation_steps max_steps num_train_epochs learning_rate "
    "lr_scheduler_type min_lr_rate warmup_steps optim weight_decay adam_beta1 adam_beta2 adam_epsilon max_grad_norm "
    "bf16 gradient_checkpointing seed dataloader_num_workers save_steps save_total_limit eval_steps eval_max_tokens "
    "per_device_eval_batch_size guards "
)
IN_0_2 = {
    "prepare-text": "val_fraction test_fraction seed output source include exclude max_file_bytes max_bytes",
    "prepare-tokens": "output data tokenizer",
    "prepare-messages": "val_fraction test_fraction seed output data questions max_examples max_answer_chars",
    "tokenizer": "data vocab_size character_coverage split_digits max_bytes seed",
    "pretrain": _TRAINING + "data hidden_size intermediate_size num_hidden_layers num_attention_heads "
    "num_key_value_heads rope_theta rms_norm_eps tie_word_embeddings attention_dropout initializer_range sample_steps "
    "sample_prompts sample_max_new_tokens",
    "finetune": _TRAINING + "model data r lora_alpha lora_dropout use_rslora target_modules",
    "evaluate": "model data split max_length max_tokens per_device_eval_batch_size answers max_new_tokens",
    "merge": "model adapter adapters weights dtype base_rounding untie_word_embeddings parity_positions",
    "export": "model adapter data file_types adapters adapter_type imatrix imatrix_tokens converter quantizer "
    "llama_cpp i2s parity_positions max_length",
    "fake": "data max_steps step_s learning_rate seed save_steps save_total_limit checkpoint_bytes eval_steps "
    "nan_at_step fail_at_step guards",
}
"""The fields that decided a fingerprint in version 0.2, besides the kind."""


@pytest.mark.parametrize("tag", IN_0_2)
def test_a_field_that_an_older_version_did_not_have_is_left_out_at_its_default(tag: str) -> None:
    fields = STAGE_TYPES[tag].model_fields
    new = set(fields) - set(IN_0_2[tag].split()) - LEFT_OUT - {"kind"}
    added = {**ADDED_LATER, **ADDED_TO_KINDS.get(tag, {})}
    made = {name: fields[name].get_default(call_default_factory=True) for name in new}
    defaults = {name: value.model_dump() if isinstance(value, Strict) else value for name, value in made.items()}
    assert defaults == {name: added[name] for name in new}


def test_a_default_does_not_change_the_fingerprint_and_a_value_does() -> None:
    old = {"kind": "finetune", "r": 8}
    assert fingerprint({**old, "start_from": None}, ["a"]) == fingerprint(old, ["a"])
    assert fingerprint({**old, "start_from": "base"}, ["a"]) != fingerprint(old, ["a"])


def test_a_guard_that_an_older_version_did_not_have_is_left_out_at_its_default() -> None:
    fields = STAGE_TYPES["pretrain"].model_fields["guards"].get_default(call_default_factory=True).model_dump()
    old = {"kind": "pretrain", "guards": {"grad_norm": 1000.0}}
    assert fingerprint({**old, "guards": fields}, []) == fingerprint(old, [])
    assert fingerprint({**old, "guards": {**fields, "loss_spike": 3.0}}, []) != fingerprint(old, [])
