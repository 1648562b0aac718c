"""The operator's own tensor types: which tensors a name means, and what is refused."""

from __future__ import annotations

import pytest

from engines.llama.ggml_types import TYPES
from exporters.gguf.own_types import check_tensor_types, with_tensor_types
from exporters.gguf.quant_types import FilePlan, Shape, plan_file
from recipes.file_types import TENSOR_TYPES
from recipes.problems import OperatorError

SHAPES = [
    Shape("token_embd.weight", 300, 256),
    *(
        Shape(f"blk.{layer}.{part}.weight", 256, 256)
        for layer in range(12)
        for part in ("attn_q", "attn_v", "ffn_down", "ffn_up")
    ),
    *(Shape(f"blk.{layer}.attn_norm.weight", 1, 256, 1) for layer in range(12)),
    Shape("output_norm.weight", 1, 256, 1),
]


def own(**types: str) -> dict[str, str]:
    return {name.replace("__", "."): kind for name, kind in types.items()}


def planned(tensor_types: dict[str, str], file_type: str = "Q4_K_M", shapes: list[Shape] = SHAPES) -> FilePlan:
    check_tensor_types(shapes, tensor_types)
    return with_tensor_types(plan_file(file_type, shapes, layers=12), tensor_types)


def types(plan: FilePlan) -> dict[str, str]:
    return {choice.shape.name.removesuffix(".weight"): choice.type for choice in plan.choices}


def test_a_part_means_every_layers_tensor_and_the_others_keep_the_rules_type() -> None:
    before = types(planned({}))
    after = types(planned({"ffn_down": "Q6_K", "token_embd": "Q8_0"}))
    assert {after[f"blk.{layer}.ffn_down"] for layer in range(12)} == {"Q6_K"}
    assert after["token_embd"] == "Q8_0"
    named = [name for name in after if name.endswith("ffn_down")] + ["token_embd"]
    assert {name: kind for name, kind in after.items() if name not in named} == {
        name: kind for name, kind in before.items() if name not in named
    }


def test_a_tensor_counts_before_a_pattern_and_a_pattern_before_a_part() -> None:
    for order in (1, -1):
        given = [
            ("ffn_up", "Q5_K"),
            ("blk.1*.ffn_*", "Q3_K"),
            ("blk.10.ffn_up", "Q8_0"),
            ("blk.11.ffn_up.weight", "F16"),
        ]
        after = types(planned(dict(given[::order])))
        assert [after[f"blk.{layer}.ffn_up"] for layer in (0, 1, 9, 10, 11)] == ["Q5_K", "Q3_K", "Q5_K", "Q8_0", "F16"]


def test_vectors_keep_their_type_and_plain_files_are_unchanged() -> None:
    assert types(planned({"blk.*": "Q8_0"}))["blk.3.attn_norm"] == "F32"
    assert types(planned({"ffn_down": "Q8_0"}, "F16")) == types(planned({}, "F16"))


def test_the_size_and_the_bits_are_those_of_the_own_types() -> None:
    plan = planned({"*": "Q8_0"})
    matrices = sum(choice.shape.rows * choice.shape.columns for choice in plan.choices if choice.shape.dimensions > 1)
    assert sum(choice.bytes for choice in plan.choices if choice.shape.dimensions > 1) == matrices * 34 // 32
    assert 8.5 < plan.bits_per_weight < 8.7


def test_a_width_that_does_not_fit_an_own_type_falls_back_as_in_llama_cpp() -> None:
    narrow = [Shape("token_embd.weight", 300, 96), Shape("blk.0.ffn_up.weight", 64, 96)]
    plan = planned({"ffn_up": "Q6_K"}, "Q8_0", narrow)
    assert types(plan)["blk.0.ffn_up"] == "Q8_0"
    assert "Q6_K → Q8_0" in plan.fallback_note()


def test_every_wrong_name_is_reported_with_the_nearest_part() -> None:
    with pytest.raises(OperatorError) as caught:
        check_tensor_types(SHAPES, {"ffn_dwn": "Q6_K", "blk.12.ffn_up": "Q6_K", "attn_norm": "Q8_0", "ffn_up": "Q6_K"})
    lines = str(caught.value.message).splitlines()
    assert [line.partition(" — ")[0] for line in lines] == [
        "tensor_types.ffn_dwn",
        "tensor_types.blk.12.ffn_up",
        "tensor_types.attn_norm",
    ]
    assert "did you mean ffn_down?" in lines[0]


def test_an_embedding_cannot_have_a_type_that_requires_importances() -> None:
    with pytest.raises(OperatorError, match=r"tensor_types\.token_embd — got IQ2_XS, which requires importances"):
        check_tensor_types(SHAPES, {"token_embd": "IQ2_XS"})
    check_tensor_types(SHAPES, {"ffn_up": "IQ2_XS"})


def test_a_recipe_may_name_every_tensor_type_but_those_for_ternary_weights() -> None:
    assert set(TENSOR_TYPES) == set(TYPES) - {"TQ1_0", "TQ2_0"}
