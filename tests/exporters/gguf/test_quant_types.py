"""The type that each tensor gets, without torch or numpy."""

from __future__ import annotations

import subprocess
import sys

import pytest

from exporters.gguf.quant_types import Shape, model_shapes, plan_file
from exporters.hf_model.families.llama import LLAMA
from recipes.tensor_rules import Place, more_bits

CONFIG = {
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 16,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}


def shapes_of(vocab_size: int, **fields: object) -> list[Shape]:
    return model_shapes(LLAMA, CONFIG | {"vocab_size": vocab_size} | fields)


def types(file_type: str, **fields: object) -> dict[str, str]:
    config = CONFIG | fields
    layers = int(str(config["num_hidden_layers"]))
    return {
        choice.shape.name: choice.type
        for choice in plan_file(file_type, shapes_of(4096, **fields), layers=layers).choices
    }


def test_more_bits_go_to_the_ends_and_every_third_layer() -> None:
    assert [layer for layer in range(16) if more_bits(Place(layer, 16, 1, importance=False))] == [
        0,
        1,
        4,
        7,
        10,
        13,
        14,
        15,
    ]
    assert [layer for layer in range(4) if more_bits(Place(layer, 4, 1, importance=False))] == [2, 3]


@pytest.mark.parametrize(
    ("file_type", "default", "best"), [("Q4_K_M", "Q4_K", "Q6_K"), ("Q5_K_M", "Q5_K", "Q6_K"), ("Q6_K", "Q6_K", "Q6_K")]
)
def test_k_mixtures(file_type: str, default: str, best: str) -> None:
    chosen = types(file_type)
    assert chosen["token_embd.weight"] == "Q6_K"
    for layer in range(16):
        assert chosen[f"blk.{layer}.attn_v.weight"] == (
            best if more_bits(Place(layer, 16, 1, importance=False)) else default
        )
        assert chosen[f"blk.{layer}.ffn_down.weight"] == (
            best if more_bits(Place(layer, 16, 1, importance=False)) else default
        )
        for part in ("attn_q", "attn_k", "attn_output", "ffn_gate", "ffn_up"):
            assert chosen[f"blk.{layer}.{part}.weight"] == default
        assert chosen[f"blk.{layer}.attn_norm.weight"] == "F32"


def test_small_mixture_gives_the_first_layers_more() -> None:
    chosen = types("Q4_K_S")
    assert [chosen[f"blk.{layer}.attn_v.weight"] for layer in range(6)] == ["Q5_K"] * 4 + ["Q4_K"] * 2
    assert [chosen[f"blk.{layer}.ffn_down.weight"] for layer in range(4)] == ["Q5_K"] * 2 + ["Q4_K"] * 2


def parts_of(file_type: str, layer: int, **fields: object) -> dict[str, str]:
    """The types of a layer's matrices, by category."""
    config = CONFIG | fields
    shapes = shapes_of(4096, **fields)
    gqa = int(str(config["num_attention_heads"])) // int(str(config["num_key_value_heads"]))
    plan = plan_file(file_type, shapes, layers=16, gqa=gqa, importance=True)
    within = {c.shape.name.split(".")[2]: c.type for c in plan.choices if c.shape.layer == layer}
    return {part: kind for part, kind in within.items() if kind != "F32"}


@pytest.mark.parametrize(
    ("file_type", "base", "first", "middle"),
    [
        ("Q4_1", "Q4_1", {}, {}),
        ("Q3_K_S", "Q3_K", {}, {}),
        ("Q3_K_L", "Q3_K", *[{"attn_v": "Q5_K", "attn_output": "Q5_K", "ffn_down": "Q5_K"}] * 2),
        (
            "IQ3_M",
            "IQ3_S",
            {"attn_v": "Q4_K", "attn_output": "Q4_K", "ffn_down": "Q4_K"},
            {"attn_v": "Q4_K", "attn_output": "Q4_K"},
        ),
        (
            "IQ3_XS",
            "IQ3_S",
            {"attn_q": "IQ3_XXS", "attn_k": "IQ3_XXS"},
            {"attn_q": "IQ3_XXS", "attn_k": "IQ3_XXS", "ffn_gate": "IQ3_XXS", "ffn_up": "IQ3_XXS"},
        ),
        (
            "IQ2_M",
            "IQ2_S",
            {"attn_v": "IQ3_S", "attn_output": "IQ3_S", "ffn_down": "IQ3_S"},
            {"attn_v": "IQ3_S", "attn_output": "IQ3_S"},
        ),
        (
            "IQ2_S",
            "IQ2_XS",
            {"attn_v": "IQ3_S", "attn_output": "IQ3_S", "ffn_down": "IQ3_S"},
            {"attn_v": "IQ3_S", "attn_output": "IQ3_S"},
        ),
        (
            "IQ1_M",
            "IQ1_M",
            {"attn_v": "Q2_K", "attn_output": "IQ2_XXS", "ffn_down": "Q2_K"},
            {"attn_v": "Q2_K", "attn_output": "IQ2_XXS"},
        ),
        (
            "IQ1_S",
            "IQ1_S",
            {"attn_v": "Q2_K", "attn_output": "IQ2_XXS", "ffn_down": "Q2_K"},
            {"attn_v": "Q2_K", "attn_output": "IQ2_XXS"},
        ),
        ("MXFP4_MOE", "Q8_0", {}, {}),
    ],
)
def test_small_types_mix_as_llama_cpp_does(
    file_type: str, base: str, first: dict[str, str], middle: dict[str, str]
) -> None:
    parts = parts_of(file_type, 0, num_key_value_heads=8)
    assert parts == dict.fromkeys(parts, base) | first
    assert parts_of(file_type, 5, num_key_value_heads=8) == dict.fromkeys(parts, base) | middle


def test_few_heads_of_values_and_many_experts_give_values_more() -> None:
    for file_type in ("IQ3_XS", "IQ2_M", "IQ2_S", "IQ1_M", "IQ1_S"):
        assert parts_of(file_type, 5)["attn_v"] == "Q4_K"
    values = [Shape("blk.0.attn_v.weight", 256, 256)]
    assert plan_file("IQ1_S", values, layers=1, experts=32).choices[0].type == "Q4_K"
    assert plan_file("IQ3_XS", values, layers=1, experts=32).choices[0].type == "IQ3_S"


def test_eight_experts_have_rules_of_their_own() -> None:
    shapes = [Shape(f"blk.0.{part}.weight", 256, 256) for part in ("attn_v", "attn_k", "attn_output")]
    chosen = {
        name: [choice.type for choice in plan_file(name, shapes, layers=1, experts=8).choices]
        for name in ("Q4_K_M", "Q3_K_L", "IQ2_XS")
    }
    assert chosen == {
        "Q4_K_M": ["Q8_0", "Q8_0", "Q5_K"],
        "Q3_K_L": ["Q8_0", "Q8_0", "Q3_K"],
        "IQ2_XS": ["Q4_K", "Q4_K", "Q5_K"],
    }


def test_stacked_experts_get_the_type_of_their_part_and_routers_none() -> None:
    shapes = [
        Shape("blk.0.ffn_down_exps.weight", 512, 256, 3),
        Shape("blk.0.ffn_gate_inp.weight", 8, 256),
        Shape("blk.0.ffn_gate_exps.weight", 512, 256, 3),
        Shape("blk.0.attn_q.weight", 256, 256),
    ]
    chosen = {name: [c.type for c in plan_file(name, shapes, layers=1).choices] for name in ("Q4_K_M", "MXFP4_MOE")}
    assert chosen == {
        "Q4_K_M": ["Q6_K", "F32", "Q4_K", "Q4_K"],
        "MXFP4_MOE": ["MXFP4", "F32", "MXFP4", "Q8_0"],
    }


def test_a_type_for_experts_says_that_a_model_has_none() -> None:
    plan = plan_file("MXFP4_MOE", shapes_of(4096), layers=16)
    assert "only experts in MXFP4" in plan.fallback_note()
    experts = [Shape("blk.0.ffn_down_exps.weight", 512, 256, 3, 2)]
    assert not plan_file("MXFP4_MOE", experts, layers=1).fallback_note()


def test_fused_projections_count_as_values_and_only_layers_that_have_them_count() -> None:
    shapes = [Shape(f"blk.{layer}.attn_qkv.weight", 256, 256) for layer in range(0, 32, 2)]
    chosen = [choice.type for choice in plan_file("Q4_K_M", shapes, layers=32).choices]
    more = [more_bits(Place(index, 16, 1, importance=False)) for index in range(16)]
    assert chosen == ["Q6_K" if bits else "Q4_K" for bits in more]


def test_the_output_matrix_gets_the_bits_not_an_untied_embedding() -> None:
    chosen = types("Q4_K_M", tie_word_embeddings=False)
    assert (chosen["output.weight"], chosen["token_embd.weight"]) == ("Q6_K", "Q4_K")
    chosen = types("Q8_0", tie_word_embeddings=False)
    assert (chosen["output.weight"], chosen["token_embd.weight"], chosen["output_norm.weight"]) == (
        "Q8_0",
        "Q8_0",
        "F32",
    )


@pytest.mark.parametrize(
    ("hidden", "file_type", "projection", "value", "embedding"),
    [
        (96, "Q4_K_M", "Q5_0", "Q8_0", "Q8_0"),
        (96, "Q5_K_M", "Q5_1", "Q8_0", "Q8_0"),
        (96, "Q6_K", "Q8_0", "Q8_0", "Q8_0"),
        (80, "Q4_K_M", "F16", "F16", "F16"),
        (80, "Q8_0", "F16", "F16", "F16"),
        (96, "Q8_0", "Q8_0", "Q8_0", "Q8_0"),
    ],
)
def test_widths_that_are_not_multiples_of_the_block_fall_back(
    hidden: int, file_type: str, projection: str, value: str, embedding: str
) -> None:
    shapes = shapes_of(300, hidden_size=hidden, intermediate_size=2 * hidden, num_attention_heads=2)
    plan = plan_file(file_type, shapes, layers=16)
    chosen = {choice.shape.name: choice.type for choice in plan.choices}
    assert chosen["blk.0.attn_q.weight"] == projection
    assert chosen["blk.0.attn_v.weight"] == value
    assert chosen["token_embd.weight"] == embedding
    assert bool(plan.fallback_note()) == bool(hidden == 80 or file_type != "Q8_0")


def test_a_note_shows_the_cost_of_a_fallback() -> None:
    shapes = shapes_of(300, hidden_size=80, intermediate_size=160, num_attention_heads=2)
    note = plan_file("Q4_K_M", shapes, layers=16).fallback_note()
    assert "80, 160" in note
    assert "Q4_K → F16" in note
    assert "14.3 bits per weight" in note


def test_effective_bits_and_bytes() -> None:
    shapes = [
        Shape("output.weight", 256, 256),
        Shape("blk.0.attn_q.weight", 256, 256),
        Shape("output_norm.weight", 1, 256, 1),
    ]
    plan = plan_file("Q4_K_M", shapes, layers=1)
    assert plan.bytes == 256 * 210 + 256 * 144 + 1024
    assert plan.bits_per_weight == pytest.approx(8 * plan.bytes / (2 * 65536 + 256))


def test_eighty_layer_models_give_values_more() -> None:
    shapes = shapes_of(300, num_hidden_layers=80)
    chosen = {
        choice.shape.name: choice.type for choice in plan_file("Q4_K_M", shapes, layers=80, seventy_b=True).choices
    }
    assert chosen["blk.11.attn_v.weight"] == "Q5_K"
    assert chosen["blk.0.attn_v.weight"] == "Q6_K"


def test_estimates_need_no_numeric_library() -> None:
    code = (
        "import sys, exporters.gguf.quant_types; print(sorted({'numpy', 'torch', 'gguf', 'transformers'} & "
        "set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_value_projections_are_counted_in_the_layers_that_have_one() -> None:
    shapes = [Shape(f"blk.{layer}.ffn_down.weight", 256, 256) for layer in range(16)]
    shapes += [Shape(f"blk.{layer}.attn_v.weight", 256, 256) for layer in (3, 7, 11, 15)]  # full attention in every 4th
    chosen = {choice.shape.name: choice.type for choice in plan_file("Q4_K_M", shapes, layers=16).choices}
    values = [chosen[f"blk.{layer}.attn_v.weight"] for layer in (3, 7, 11, 15)]
    assert values == ["Q4_K", "Q4_K", "Q6_K", "Q6_K"]
    assert chosen["blk.0.ffn_down.weight"] == "Q6_K"


@pytest.mark.parametrize(
    ("file_type", "experts", "wanted"),
    [
        ("Q4_K_M", 8, ("Q8_0", "Q8_0", "Q5_K")),
        ("Q5_K_M", 8, ("Q8_0", "Q8_0", "Q5_K")),
        ("Q6_K", 8, ("Q8_0", "Q8_0", "Q6_K")),
        ("Q2_K", 8, ("Q8_0", "Q8_0", "Q5_K")),
        ("IQ2_XS", 8, ("Q4_K", "Q4_K", "Q5_K")),
        ("IQ2_XS", 128, ("Q4_K", "IQ2_XS", "IQ2_XS")),
        ("Q2_K", 128, ("Q3_K", "Q2_K", "Q3_K")),
    ],
)
def test_attention_beside_experts(file_type: str, experts: int, wanted: tuple[str, ...]) -> None:
    parts = ("attn_v", "attn_k", "attn_output")
    shapes = [Shape(f"blk.0.{part}.weight", 256, 256) for part in parts]
    plan = plan_file(file_type, shapes, layers=1, experts=experts, importance=True)
    assert tuple(choice.type for choice in plan.choices) == wanted


def test_routers_and_small_matrices_are_never_quantized() -> None:
    names = ["blk.0.ffn_gate_inp.weight", "blk.0.ssm_conv1d.weight", "position_embd.weight", "blk.0.attn_q.bias"]
    plan = plan_file("Q8_0", [Shape(name, 256, 256) for name in names], layers=1)
    assert [choice.type for choice in plan.choices] == ["F32"] * 4
