"""File names by GGUF's naming convention."""

from __future__ import annotations

import re

import pytest

from exporters.gguf.file_names import LORA, MAX_STEM, ModelName, name_of, shard_name, without_shard

CONVENTION = re.compile(
    r"(?P<base>[A-Za-z0-9][A-Za-z0-9._-]*?)-(?P<size>(?:\d+x)?(?:\d+\.)?\d+[A-Za-z](?:-[A-Z]\d+(?:\.\d+)?[A-Z])?)"
    r"(?:-(?P<finetune>[A-Za-z0-9.-]+?))?(?:-(?P<version>v\d+(?:\.\d+)*))?-(?P<encoding>(?!LoRA)\w+)"
    r"(?:-(?P<type>LoRA|vocab))?(?:-(?P<shard>\d{5}-of-\d{5}))?\.gguf"
)


@pytest.mark.parametrize(
    ("text", "parameters", "expected"),
    [
        ("SmolLM2-135M-Instruct", 134_515_008, "SmolLM2-135M-Instruct-Q4_K_M.gguf"),
        ("Llama-3.2-1B-Instruct", 1_235_814_400, "Llama-3.2-1B-Instruct-Q4_K_M.gguf"),
        ("gemma-3-1b-it", 999_885_952, "gemma-3-1B-it-Q4_K_M.gguf"),
        ("Mistral-7B-Instruct-v0.3", 7_248_023_552, "Mistral-7B-Instruct-v0.3-Q4_K_M.gguf"),
        ("Mixtral-8x7B-v0.1", 46_702_792_704, "Mixtral-8x7B-v0.1-Q4_K_M.gguf"),
        ("Qwen3-30B-A3B-Instruct-2507", 30_532_122_624, "Qwen3-30B-A3B-Instruct-2507-Q4_K_M.gguf"),
        ("DeepSeek-R1-Distill-Qwen-1.5B", 1_777_088_000, "DeepSeek-R1-Distill-Qwen-1.5B-Q4_K_M.gguf"),
        ("Phi-3-mini-4k-instruct", 3_821_079_552, "Phi-3-mini-4k-3.8B-instruct-Q4_K_M.gguf"),
        ("demo", 3_800_000, "demo-3.8M-Q4_K_M.gguf"),
    ],
)
def test_a_models_name_is_spelled_by_the_convention(text: str, parameters: int, expected: str) -> None:
    name = name_of(text, parameters).file("Q4_K_M")
    assert name == expected
    assert CONVENTION.fullmatch(name)


def test_the_runs_that_trained_a_model_are_its_fine_tune_and_none_is_named_twice() -> None:
    found = name_of("SmolLM2-135M-Instruct", 134_515_008, ["assistant", "instruct", "assistant", "style 2"])
    assert found.finetune == "Instruct-assistant-style-2"
    assert found.file("F16", LORA) == "SmolLM2-135M-Instruct-assistant-style-2-F16-LoRA.gguf"
    assert CONVENTION.fullmatch(found.file("F16", LORA))


def test_shards_are_numbered_as_llama_cpp_looks_for_them_and_the_number_can_be_taken_off() -> None:
    name = shard_name(name_of("demo", 3_800_000).file("Q8_0"), 2, 3)
    assert name == "demo-3.8M-Q8_0-00002-of-00003.gguf"
    assert CONVENTION.fullmatch(name)
    assert without_shard(name.removesuffix(".gguf")) == "demo-3.8M-Q8_0"


@pytest.mark.parametrize(
    "hostile", ["../../etc/passwd", "a/../b", "-rf", "\x1b]52;x\x07", "..", "", "ü" * 400, "a" * 400]
)
def test_a_hostile_name_stays_a_part_of_one_file_name(hostile: str) -> None:
    name = name_of(hostile, 5_000_000, [hostile]).file("F16")
    assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*\.gguf", name), name
    assert len(name) <= MAX_STEM + 10


def test_a_chosen_name_is_used_as_it_is() -> None:
    assert ModelName("my.model-v2").file("Q6_K") == "my.model-v2-Q6_K.gguf"
