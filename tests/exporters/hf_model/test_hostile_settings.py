"""Hostile config.json, tokenizer.json and adapter_config.json files: refused by key, before memory is allocated."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from engines.artifacts.adapter_folder import ADAPTER_CONFIG
from exporters.gguf.write import read_model
from exporters.hf_model.families.llama import LLAMA
from exporters.hf_model.model_config import check_config
from exporters.hf_model.rope import read_rope
from exporters.lora.adapter import read_adapter
from exporters.lora.settings import scale_of
from recipes.problems import OperatorError
from tests.exporters.small_models import build_byte_level_tokenizer, build_model, copy_folder, edit_json
from tests.patience import PATIENCE_S

pytestmark = pytest.mark.torch
VALUES: tuple[Any, ...] = (
    None,
    0,
    -1,
    1.5,
    "x",
    "\x1b[2J",
    2**60,
    math.inf,
    math.nan,
    True,
    [],
    {},
    [[1]],
    ["a", {"b": 1}],
)
SHAPE = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "max_position_embeddings", "vocab_size",
)  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 128}
LLAMA3 = {**YARN, "rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
SCRIPT = """
import json, resource, sys
resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
from pathlib import Path
from exporters.gguf.write import read_model
from recipes.problems import OperatorError
for line in sys.stdin:
    name, text = json.loads(line)
    path = Path(sys.argv[1], name)
    good = path.read_bytes()
    path.write_text(text)
    try:
        read_model(path.parent)
        print('"accepted"')
    except OperatorError as error:
        print(json.dumps(error.message))
    path.write_bytes(good)
"""


def read_all(folder: Path, spoiled: list[tuple[str, dict[str, Any]]]) -> list[str]:
    """The results of a process with little memory for each spoiled file; each must be a message, not a crash."""
    lines = "".join(json.dumps([name, json.dumps(value)]) + "\n" for name, value in spoiled)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder)], input=lines, capture_output=True, text=True, timeout=PATIENCE_S,
        check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    messages = [str(json.loads(line)) for line in done.stdout.splitlines()]
    assert not any("\x1b" in words for words in messages)
    return messages


def test_no_value_of_a_config_ends_in_anything_but_words(tmp_path: Path, base: Path) -> None:
    folder = copy_folder(base, tmp_path / "model")
    good = json.loads((folder / "config.json").read_text())
    good["rope_parameters"] = LLAMA3
    spoiled = [("config.json", {**good, key: value}) for key in good for value in VALUES]
    spoiled += [
        ("config.json", {**good, "rope_parameters": {**rope, key: value}})
        for rope in (YARN, LLAMA3)
        for key in (
            *rope,
            "attention_factor",
            "beta_fast",
            "mscale",
            "mscale_all_dim",
            "partial_rotary_factor",
            "truncate",
        )
        for value in VALUES
    ]
    messages = read_all(folder, spoiled)
    assert len(messages) == len(spoiled)
    refused = [line for line in messages if line != "accepted"]
    assert len(refused) > len(spoiled) // 3
    assert all("config.json" in line or str(folder) in line for line in refused), "each says where"
    huge = [
        line for (_, value), line in zip(spoiled, messages, strict=True) if any(value.get(k) == 2**60 for k in SHAPE)
    ]
    assert len(huge) == len(set(SHAPE) & set(good))
    assert not any(line == "accepted" for line in huge)


def test_no_value_of_a_tokenizer_ends_in_anything_but_words(tmp_path: Path) -> None:
    words = build_byte_level_tokenizer(tmp_path / "words")
    folder = build_model(tmp_path / "model", words, family="Qwen2")
    good = json.loads((folder / "tokenizer.json").read_text())
    model, vocab = good["model"], good["model"]["vocab"]
    spoiled = [{**good, key: value} for key in good for value in VALUES]
    spoiled += [{**good, "model": {**model, key: value}} for key in model for value in VALUES]
    token = random.Random(7).choice(sorted(vocab))
    spoiled += [{**good, "model": {**model, "vocab": {**vocab, token: value}}} for value in VALUES]
    spoiled += [{**good, "model": {**model, "merges": [*model["merges"], value]}} for value in VALUES]
    spoiled += [{**good, "added_tokens": [{"id": value, "content": "y"}]} for value in VALUES]
    spoiled += [{**good, "added_tokens": [{"id": 3, "content": value}]} for value in (*VALUES[:6], "\ud800")]
    for key, inner in (("normalizer", "normalizers"), ("pre_tokenizer", "pretokenizers")):
        spoiled += [
            {**good, key: {"type": "Sequence", inner: value}} for value in (*VALUES, [{"type": "Split", "pattern": 1}])
        ]
    messages = read_all(folder, [("tokenizer.json", value) for value in spoiled])
    assert len(messages) == len(spoiled)
    huge = [line for value, line in zip(spoiled, messages, strict=True) if str(2**60) in json.dumps(value["model"])]
    assert sum("the embedding has" in line for line in huge) >= 1


def test_all_that_is_wrong_with_a_config_is_said_at_once(tmp_path: Path, base: Path) -> None:
    folder = copy_folder(base, tmp_path / "model")
    edit_json(
        folder / "config.json", hidden_size=0, vocab_size=2**60, rms_norm_eps="x", rope_parameters={"rope_type": "x"}
    )
    with pytest.raises(OperatorError) as caught:
        read_model(folder)
    assert "vocab_size" in caught.value.message  # no library is given numbers that no model has
    edit_json(folder / "config.json", vocab_size=640)
    with pytest.raises(OperatorError) as caught:
        read_model(folder)
    lines = caught.value.message.splitlines()
    assert [line.split(" — ")[0].split(": ")[-1] for line in lines] == [
        "hidden_size",
        "rms_norm_eps",
        "rope_parameters.rope_type",
    ]
    assert all(line.startswith(f"{folder}/config.json: ") for line in lines)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"num_key_value_heads": 3}, "num_key_value_heads — got 3; allowed a divisor"),
        (
            {"num_attention_heads": 7, "num_key_value_heads": 7, "head_dim": None},
            "num_attention_heads — got 7; allowed a divisor",
        ),
        ({"head_dim": 15}, "head width — got 15; allowed an even number"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
        (
            {"rope_parameters": {**YARN, "beta_fast": 16}},
            "beta_fast — got 16; allowed 32, the only value that llama.cpp supports",
        ),
        ({"rope_parameters": {**YARN, "truncate": False}}, "truncate — got false; allowed true"),
        ({"rope_parameters": {**LLAMA3, "high_freq_factor": 0.5}}, "high_freq_factor — got 0.5; allowed more than"),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4}}, "factor — got nothing"),
        (
            {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}},
            "partial_rotary_factor — got 0.5; allowed 1",
        ),
    ],
)
def test_a_shape_that_cannot_be_is_refused_by_key(
    tmp_path: Path, base: Path, fields: dict[str, Any], named: str
) -> None:
    config = json.loads((base / "config.json").read_text()) | fields
    with pytest.raises(OperatorError) as caught:
        check_config(tmp_path, config, LLAMA)
    assert named in caught.value.message


def test_yarn_is_read_as_transformers_reads_it() -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    for more in (
        {},
        {"attention_factor": 1.3},
        {"mscale": 1.0, "mscale_all_dim": 0.7},
        {"mscale": 0.8},
        {"factor": None},
    ):
        rope = {**YARN, **more}
        config = {"max_position_embeddings": 1024, "rope_parameters": rope, "hidden_size": 64, "num_attention_heads": 4}
        _, theirs = ROPE_INIT_FUNCTIONS["yarn"](LlamaConfig(**config), "cpu")
        ours = read_rope(config)
        assert ours.factor == (8.0 if more == {"factor": None} else 4.0)
        assert ours.magnitude * (1 + 0.1 * math.log(ours.factor)) == pytest.approx(theirs, rel=1e-12)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("use_rslora", "yes"),
        ("rank_pattern", [8]),
        ("alpha_pattern", "x"),
        ("modules_to_save", [["lm_head"]]),
        ("modules_to_save", 3),
        ("alpha_pattern", {"q_proj": math.inf}),
        ("rank_pattern", {"(": 3}),
        ("rank_pattern", {r"((\w+\.?)+)+!": 3}),
        ("alpha_pattern", {r"(\w|.)*(\w|.)*!": 3}),
        ("alpha_pattern", {".*.*.*.*.*!": 3}),
        ("rank_pattern", {"(.|.)" * 40 + "!": 3}),
        ("rank_pattern", {".?" * 40 + "!": 3}),
    ],
)
def test_garbage_in_an_adapters_settings_is_not_taken_for_nothing(
    tmp_path: Path, adapter: Path, field: str, value: Any
) -> None:
    spoiled = copy_folder(adapter, tmp_path / "adapter")
    edit_json(spoiled / ADAPTER_CONFIG, **{field: value})
    with pytest.raises(OperatorError, match=f"{field}|lora_alpha"):
        read_adapter(spoiled)


@pytest.mark.parametrize(
    "pattern",
    ["q_proj", r"model\.layers\.(?:1[0-9]|0|1)\..*\.q_proj", r"^model.layers.\d+.self_attn.(q|k)_proj", ".*q_proj"],
)
def test_patterns_as_people_write_them_are_read(pattern: str) -> None:
    config = {"r": 8, "lora_alpha": 16, "alpha_pattern": {pattern: 32}}
    assert scale_of(config, "model.layers.1.self_attn.q_proj", 8) == 4.0


def test_a_damaged_sentencepiece_model_ends_in_words(tmp_path: Path, base: Path) -> None:
    folder = copy_folder(base, tmp_path / "model")
    (folder / "tokenizer.json").unlink()
    good, choose = (folder / "tokenizer.model").read_bytes(), random.Random(5)
    messages = []
    for _ in range(200):
        spoiled, at = bytearray(good), choose.randrange(len(good))
        spoiled[at : at + choose.choice((0, 1, 3))] = bytes([choose.randrange(256)])
        (folder / "tokenizer.model").write_bytes(spoiled[: choose.choice((at + 1, None))])
        try:
            read_model(folder)
        except OperatorError as error:
            messages.append(error.message)
    assert any("is not a SentencePiece model" in words for words in messages)
    assert any("is not UTF-8 text" in words for words in messages)
    assert not any("\x1b" in words for words in messages)
