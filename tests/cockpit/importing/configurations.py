"""Configurations in the forms of other programs, written for these tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cockpit.importing.config import read_config
from cockpit.importing.draft import Outcome
from cockpit.importing.programs import Imported, import_config

LLAMA_FACTORY = """\
### model
model_name_or_path: acme/tiny-llama
trust_remote_code: true

### method
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 12
lora_target: q_proj, v_proj
quantization_bit: 4

### dataset
dataset: pets
template: llama3
cutoff_len: 640
val_size: 0.1

### output
output_dir: saves/tiny
logging_steps: 10
save_steps: 250

### train
per_device_train_batch_size: 2
gradient_accumulation_steps: 4
learning_rate: 1e-4
num_train_epochs: 2.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
bf16: true
resume_from_checkpoint: null
"""
AXOLOTL = """\
base_model: acme/tiny-llama
load_in_8bit: true
load_in_4bit: false
datasets:
  - path: acme/talks
    type: chat_template
    field_messages: conversations
    message_property_mappings:
      role: from
      content: value
dataset_prepared_path:
val_set_size: 0.05
sequence_len: 1024
sample_packing: true
adapter: lora
lora_r: 8
lora_alpha: 16
lora_dropout: 0.05
lora_target_linear: true
gradient_accumulation_steps: 4
micro_batch_size: 2
num_epochs: 3
optimizer: adamw_bnb_8bit
lr_scheduler: cosine
learning_rate: 0.0002
bf16: auto
gradient_checkpointing: true
warmup_steps: 10
saves_per_epoch: 1
special_tokens:
  pad_token: "<|end|>"
wandb_project:
"""
SCRIPT = """\
from unsloth import FastLanguageModel
from trl import SFTConfig, SFTTrainer

raise SystemExit("nothing of a script may run")
LENGTH = 4096
model, tokenizer = FastLanguageModel.from_pretrained(
    model_name="acme/tiny-llama", max_seq_length=LENGTH, load_in_4bit=True
)
model = FastLanguageModel.get_peft_model(
    model, r=32, target_modules=["q_proj", "v_proj"], lora_alpha=64, use_gradient_checkpointing="unsloth",
    random_state=3407,
)
trainer = SFTTrainer(
    model=model, tokenizer=tokenizer, train_dataset=load(),
    args=SFTConfig(
        per_device_train_batch_size=2, max_steps=60, learning_rate=2e-4, optim="adamw_8bit", warmup_steps=5,
        fp16=not good(), bf16=good(), lr_scheduler_type="linear", report_to="none", output_dir="outputs",
    ),
)
"""


def imported(folder: Path, text: str, name: str = "config.yaml", program: str | None = None) -> Imported:
    """The import of a configuration that is written into a folder."""
    path = folder / name
    path.write_text(text)
    return import_config(read_config(path), program)


def registry(folder: Path, **entries: Any) -> None:
    """A registry of data sets in `data/` of a folder, with a file for each entry that names one."""
    (folder / "data").mkdir(exist_ok=True)
    (folder / "data" / "dataset_info.json").write_text(json.dumps(entries, indent="\t"))
    for entry in entries.values():
        if "file_name" in entry:
            (folder / "data" / entry["file_name"]).write_text("[]")


def outcome(found: Imported, key: str) -> Outcome:
    """The one outcome of a key."""
    (one,) = [outcome for outcome in found.outcomes if outcome.key == key]
    return one
