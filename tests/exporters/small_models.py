"""Small real models for the exporters' tests: a tokenizer trained on the standard library, weights that depend on
position."""

from __future__ import annotations

import io
import json
import sysconfig
from pathlib import Path
from typing import Any

import sentencepiece
from tokenizers import Regex

from engines.data.special_pieces import BEGIN, END, TURN_END, TURN_START, UNKNOWN
from engines.tokenizer.convert import write_tokenizer
from exporters.reference.reference_model import model_class

VOCAB = 640
FILES = ("heapq.py", "textwrap.py", "string.py", "csv.py", "shlex.py", "ast.py")


def build_tokenizer(folder: Path) -> Path:
    """A tokenizer folder as the tokenizer stage writes it."""
    root = Path(sysconfig.get_path("stdlib"))
    text = "".join((root / name).read_text(encoding="utf-8") for name in FILES)[:150_000]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([text[start : start + 8000] for start in range(0, len(text), 8000)]),
        model_writer=model,
        model_type="bpe",
        vocab_size=VOCAB,
        character_coverage=1.0,
        split_digits=True,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        add_dummy_prefix=False,
        max_sentence_length=65536,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        unk_piece=UNKNOWN,
        bos_piece=BEGIN,
        eos_piece=END,
        control_symbols=[TURN_START, TURN_END],
        num_threads=1,
        minloglevel=2,
    )
    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer(model.getvalue(), folder)
    return folder


def build_byte_level_tokenizer(folder: Path, *, individual_digits: bool = False) -> Path:
    """A byte-level BPE tokenizer: Qwen2's, or GPT-2's words with single digits."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer

    from exporters.gguf.pre_tokenizers import _PATTERNS

    words = next(pattern for (pattern, _), name in _PATTERNS.items() if name == "qwen2")
    split = pre_tokenizers.Split(Regex(words), "isolated")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        if individual_digits
        else [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", TURN_START, TURN_END]
    root = Path(sysconfig.get_path("stdlib"))
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=[], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([(root / name).read_text(encoding="utf-8") for name in FILES], trainer)
    tokenizer.add_special_tokens(special)
    names = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "extra_special_tokens": special[1:]}
    if individual_digits:
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    else:
        model = json.loads(tokenizer.to_str())["model"]
        merges = [tuple(pair) for pair in model["merges"]]
        Qwen2Tokenizer(vocab=model["vocab"], merges=merges, **names).save_pretrained(folder)
    return folder


def build_model(
    folder: Path,
    tokenizer: Path,
    *,
    family: str = "Llama",
    config: str = "",
    shards: str = "",
    dtype: str = "float32",
    **fields: Any,
) -> Path:
    """A model folder with random weights, sharp enough for attention, rope and norms to matter.

    `config`: the beginning of the configuration class's name, if it is not `family`.
    """
    import transformers

    settings: dict[str, Any] = {
        "vocab_size": VOCAB,
        "pad_token_id": None,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
        "bos_token_id": 1,
        "eos_token_id": 2,
        **fields,
    }
    made = getattr(transformers, f"{config or family}Config")(**settings)
    return save_sharpened(getattr(transformers, f"{family}ForCausalLM"), made, folder, tokenizer, shards, dtype)


def save_sharpened(
    model_class: Any, config: Any, folder: Path, tokenizer: Path, shards: str = "", dtype: str = "float32"
) -> Path:
    """Save a model of this class and config with random weights, and the tokenizer beside it."""
    import torch

    torch.manual_seed(7)
    model = model_class(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "q_proj.weight" in name or "k_proj.weight" in name:
                parameter.mul_(4)
            elif "norm" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
            elif name.endswith("bias"):
                parameter.normal_(0, 0.1)
            elif "_proj" in name:
                parameter.mul_(1.5)
    model.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size=shards or "5GB")
    for file in tokenizer.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def build_adapter(
    folder: Path, base: Path, *, targets: tuple[str, ...] = ("q_proj", "v_proj", "down_proj"), **fields: Any
) -> Path:
    """An adapter with random matrices, as PEFT saves it."""
    import torch
    from peft import LoraConfig, get_peft_model

    model = model_class(base).from_pretrained(base, dtype=torch.float32)
    settings: dict[str, Any] = {
        "r": 8,
        "lora_alpha": 12,
        "target_modules": list(targets),
        "task_type": "CAUSAL_LM",
        **fields,
    }
    adapted = get_peft_model(model, LoraConfig(**settings))
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.05)
    adapted.save_pretrained(folder)
    return folder


def edit_json(path: Path, **fields: Any) -> None:
    """Change fields of a JSON object in a file; None removes one."""
    value = json.loads(path.read_text())
    value |= fields
    path.write_text(json.dumps({key: item for key, item in value.items() if item is not None}))


def copy_folder(source: Path, target: Path) -> Path:
    """A copy to spoil."""
    target.mkdir(parents=True)
    for file in source.iterdir():
        if file.is_file():
            (target / file.name).write_bytes(file.read_bytes())
    return target
