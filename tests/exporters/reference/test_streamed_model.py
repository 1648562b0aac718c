"""A model that reads its weights while it runs gives the logits of the whole model in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from exporters.gguf.write import read_model, write_gguf
from exporters.hf_model.tensor_files import SafetensorsFolder
from exporters.reference.adapted_model import adapted_bytes, adapted_model
from exporters.reference.file_weights import FileWeights, equal_values
from exporters.reference.reference_model import TorchLogits, load_reference
from exporters.reference.rounded_inputs import rounded
from exporters.reference.streamed_model import AdapterOutsideLayersError, Rounding, StreamedModel
from tests.exporters.small_models import build_adapter

pytestmark = pytest.mark.torch

SMALL: dict[str, Any] = {
    "vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "pad_token_id": 5, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": {"tie_word_embeddings": True},
    "Qwen3": {"head_dim": 32},
    "Gemma2": {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 16},
    "Granite": {"logits_scaling": 8.0, "embedding_multiplier": 3.0},
    "Phi3": {},
    "Qwen3Moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 16},
}
WINDOWS = [list(range(3, 43)), list(range(100, 90, -1)), [7, 7, 7, 250, 9]]
POSITIONS = sum(map(len, WINDOWS))


def small(folder: Path, family: str) -> Path:
    import torch
    import transformers

    torch.manual_seed(1)
    config = getattr(transformers, f"{family}Config")(**SMALL, **FAMILIES[family])
    model = getattr(transformers, f"{family}ForCausalLM")(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3 if parameter.dim() > 1 else 1)
    model.save_pretrained(folder)
    return folder


def whole(folder: Path, **given: Any) -> NDArray[np.float32]:
    out = np.empty((POSITIONS, SMALL["vocab_size"]), np.float32)
    TorchLogits(load_reference(folder, 1, **given)).logits_into(WINDOWS, out, lambda _positions: None)
    return out


def streamed(model: Any) -> NDArray[np.float32]:
    out, seen = np.empty((POSITIONS, SMALL["vocab_size"]), np.float32), 0

    def advance(positions: int) -> None:
        nonlocal seen
        seen += positions

    model.logits_into(WINDOWS, out, advance)
    assert seen == POSITIONS
    return out


@pytest.mark.parametrize("family", FAMILIES)
def test_its_logits_are_those_of_the_whole_model(family: str, tmp_path: Path) -> None:
    folder = small(tmp_path, family)
    model = StreamedModel(folder, SafetensorsFolder(folder), 1)
    np.testing.assert_allclose(streamed(model), whole(folder), atol=1e-5)


def test_no_weight_is_in_memory_before_or_after(tmp_path: Path) -> None:
    folder = small(tmp_path, "Llama")
    model = StreamedModel(folder, SafetensorsFolder(folder), 1)
    read: list[str] = []
    sources = model._sources
    original = sources.read

    def watched(names: list[str]) -> dict[str, Any]:
        in_memory = [name for name, value in model._base.layers.named_parameters() if not value.is_meta]
        assert in_memory == [], "the layer before is gone when the next is read"
        read.extend(names)
        return original(names)

    sources.read = watched  # type: ignore[method-assign,assignment]
    streamed(model)
    assert all(value.is_meta for value in model._base.layers.parameters())
    assert len(read) == len(set(read)) == 9 * 2 + 1, (
        "each weight of two layers and the norm is read once for all windows"
    )


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_K"])
def test_rounding_moves_a_second_computation_and_not_the_first(kind: str, tmp_path: Path) -> None:
    folder = small(tmp_path, "Llama")
    weights = SafetensorsFolder(folder)
    model = StreamedModel(folder, weights, 1)
    expected, out = streamed(model), np.empty((POSITIONS, SMALL["vocab_size"]), np.float32)
    kinds = dict.fromkeys(weights.tensors, kind if kind != "Q4_K" else "Q8_0")
    again = Rounding(kinds, np.empty((len(WINDOWS[0]), SMALL["vocab_size"]), np.float32), 1)
    model.logits_into(WINDOWS, out, rounding=again)
    np.testing.assert_allclose(out, expected, atol=1e-5)
    moved = np.abs(again.logits - expected[: len(again.logits)]).max()
    assert again.complete
    assert 1e-5 < moved < 0.5


def test_inputs_are_rounded_as_the_kernels_round_them() -> None:
    import torch

    values = torch.zeros(1, 256)
    values[0, 0], values[0, 1], values[0, 40] = 127.0, 0.4, 0.4
    assert rounded(values, "Q8_0")[0, [0, 1]].tolist() == [127.0, 0.0], "0.4 is below half a step of its block of 32"
    assert rounded(values, "Q8_0")[0, 40].item() == pytest.approx(0.4, rel=1e-3), "another block has its own scale"
    assert rounded(values, "Q4_K")[0, 40].item() == 0.0, "K types share a scale among 256"
    assert rounded(torch.tensor([[1 + 2**-9]]), "BF16").item() == 1.0
    assert rounded(torch.tensor([[1 + 2**-9]]), "F16").item() == 1 + 2**-9
    assert rounded(torch.zeros(1, 256), "Q6_K").abs().max() == 0


def test_an_adapter_over_its_base_is_applied_by_peft_layer_by_layer(tmp_path: Path) -> None:
    folder = small(tmp_path / "base", "Qwen3")
    adapter = build_adapter(tmp_path / "adapter", folder, targets=("q_proj", "down_proj"), use_dora=True)
    model = adapted_model(folder, 1, adapter, SMALL["vocab_size"])
    assert isinstance(model, StreamedModel)
    expected = whole(folder, adapter=adapter)
    np.testing.assert_allclose(streamed(model), expected, atol=1e-4)
    assert np.abs(expected - whole(folder)).max() > 1e-3


def test_an_adapter_of_the_head_needs_the_whole_base(tmp_path: Path) -> None:
    folder = small(tmp_path / "base", "Qwen3")
    adapter = build_adapter(tmp_path / "adapter", folder, targets=("q_proj",), modules_to_save=["lm_head"])
    with pytest.raises(AdapterOutsideLayersError):
        StreamedModel(folder, SafetensorsFolder(folder), 1, adapter=adapter)
    found = streamed(adapted_model(folder, 1, adapter, SMALL["vocab_size"]))
    np.testing.assert_allclose(found, whole(folder, adapter=adapter), atol=1e-5)


def test_an_adapter_with_its_own_copy_of_a_larger_vocabulary_needs_the_whole_base(tmp_path: Path) -> None:
    """PEFT saves the resized embedding beside the one in modules_to_save."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folder = small(tmp_path / "base", "Llama")
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(306, mean_resizing=False)
    config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"])
    adapted = get_peft_model(model, config)
    adapted.save_pretrained(tmp_path / "adapter")
    found = np.zeros((POSITIONS, 306), np.float32)
    adapted_model(folder, 1, tmp_path / "adapter", 306).logits_into(WINDOWS, found, lambda _count: None)
    with torch.no_grad():
        wanted = np.concatenate([adapted.eval()(torch.tensor([window])).logits[0].numpy() for window in WINDOWS])
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_a_file_decodes_to_the_folders_values_in_the_folders_order(base: Path, tmp_path: Path) -> None:
    model = read_model(base)
    write_gguf(model, model.plan("F32"), tmp_path / "m.gguf", None)
    weights = FileWeights(tmp_path / "m.gguf", model)
    assert set(weights.tensors) == set(model.weights.tensors)
    for name, info in weights.tensors.items():
        np.testing.assert_array_equal(weights.read(name), model.weights.read(name))
        assert weights.read_rows(name, 0, 1).shape == (1, info.columns)
    assert equal_values(weights, model.weights)
    write_gguf(model, model.plan("F16"), tmp_path / "h.gguf", None)
    assert not equal_values(FileWeights(tmp_path / "h.gguf", model), model.weights), "the weights are float32"


def test_a_model_of_14_billion_parameters_needs_less_than_4_gib() -> None:
    from exporters.hf_model.architectures import ARCHITECTURES
    from exporters.hf_model.tensor_files import TensorInfo
    from exporters.reference.needed_memory import reference_bytes

    settings = {
        "hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 48, "num_attention_heads": 40,
        "num_key_value_heads": 8, "vocab_size": 152_064, "tie_word_embeddings": False,
    }  # fmt: skip
    places = ARCHITECTURES["Qwen2ForCausalLM"].tensors(settings).values()
    tensors = {name: TensorInfo(name, Path("x"), "BF16", place.shape, 0) for place in places for name in place.sources}
    assert 14.7e9 < sum(info.values for info in tensors.values()) < 14.9e9
    weights: Any = type("Shapes", (), {"tensors": tensors})()
    assert 2 * 2**30 < reference_bytes(weights, settings, 2048, 256) < 4 * 2**30


OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "GPT2": ("GPT2LMHeadModel", {"vocab_size": 300, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64}),
    "Bloom": ("BloomForCausalLM", {"vocab_size": 300, "hidden_size": 64, "n_layer": 2, "n_head": 4}),
    "OPT": (
        "OPTForCausalLM",
        {
            "vocab_size": 300,
            "hidden_size": 64,
            "word_embed_proj_dim": 32,
            "ffn_dim": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 64,
        },
    ),
    "Mamba": ("MambaForCausalLM", {"vocab_size": 300, "hidden_size": 64, "num_hidden_layers": 2}),
}
"""Families whose sizes, lists of layers and results have names of their own."""


@pytest.mark.parametrize("family", OTHERS)
def test_a_family_with_names_of_its_own_gives_the_logits_of_the_whole_model_too(family: str, tmp_path: Path) -> None:
    import torch
    import transformers

    torch.manual_seed(1)
    name, settings = OTHERS[family]
    getattr(transformers, name)(getattr(transformers, f"{family}Config")(**settings)).save_pretrained(tmp_path)
    model = StreamedModel(tmp_path, SafetensorsFolder(tmp_path), 1)
    assert model.layers == 2
    np.testing.assert_allclose(streamed(model), whole(tmp_path), atol=1e-5)
    assert adapted_bytes(tmp_path, POSITIONS, 40) > 0
