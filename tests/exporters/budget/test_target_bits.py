"""`target_bits` in an export: the size is met, the errors are measured, the recipe repeats the tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from engines.events.attempts import Progress
from exporters.budget.measure import candidates
from exporters.budget.places import in_folder_order, places_of
from exporters.gguf.own_types import check_tensor_types
from exporters.gguf.quant_types import Shape
from exporters.gguf.write import read_model, read_rows
from exporters.reference.reference_model import load_reference
from recipes.load import load_recipe_text
from recipes.problems import OperatorError
from tests.exporters.exporting import export, parity
from tests.exporters.family_models import FAMILIES

pytestmark = pytest.mark.torch
SMALL: dict[str, Any] = {"imatrix_tokens": 512, "target_tokens": 256, "parity_positions": 150, "max_length": 128}


def tensors(path: Path) -> dict[str, tuple[str, bytes]]:
    return {t.name: (t.tensor_type.name, t.data.tobytes()) for t in gguf.GGUFReader(path).tensors}


def test_a_target_is_met_with_less_error_and_its_recipe_repeats_the_tensors(base: Path, tmp_path: Path) -> None:
    bits = round(read_model(base).plan("Q4_K_M", importance=True).bits_per_weight, 3)
    ctx, result = export(tmp_path / "target", base, "Q4_K_M", imatrix="always", target_bits=bits, **SMALL)
    record = parity(ctx)
    label = f"BPW{str(bits).replace('.', '_')}"
    plain, chosen = record["files"]
    assert (plain["file_type"], chosen["file_type"]) == ("Q4_K_M", label)
    assert bits - 0.1 < chosen["bits_per_weight"] <= bits
    assert chosen["quality"]["weights_mean_kl"] < 0.85 * plain["quality"]["weights_mean_kl"]
    assert record["target"]["mean_kl"] == pytest.approx(record["target"]["expected_mean_kl"], rel=0.5)
    assert record["passed"]
    assert result.metrics[f"{label.lower()}_bits_per_weight"] == chosen["bits_per_weight"]
    done = [event for event in ctx.events() if isinstance(event, Progress) and event.unit == "seconds of work"]
    assert any(event.done == pytest.approx(event.total) for event in done)

    recipe = load_recipe_text((ctx.out / record["target"]["recipe"]).read_text(), tmp_path / "again.toml").recipe
    stage = recipe.stage[0].model_dump(exclude_defaults=True, exclude={"name", "kind", "model", "threads"})
    check_tensor_types(read_model(base).shapes, stage["tensor_types"])
    again, _ = export(tmp_path / "again", base, *stage.pop("file_types"), **stage)
    (path,) = (again.out / file["file"] for file in parity(again)["files"])
    assert tensors(path) == tensors(ctx.out / chosen["file"])


def test_a_target_that_no_types_reach_is_refused_before_any_work(base: Path, tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match=r"target_bits — got 3; allowed for this model: \d+\.\d+ or more"):
        export(tmp_path, base, "Q8_0", target_bits=3.0, tensor_types={"token_embd": "F16"}, **SMALL)
    assert not list(tmp_path.rglob("*.gguf"))


def test_narrow_widths_have_the_types_of_32_values_and_own_types_are_kept() -> None:
    wide, narrow = Shape("blk.0.ffn_up.weight", 64, 512), Shape("blk.0.ffn_up.weight", 64, 96)
    usual = ["Q2_K", "IQ3_XXS", "Q3_K", "IQ3_S", "IQ4_XS", "Q4_K", "Q5_K", "Q6_K", "Q8_0"]
    assert candidates(wide, 4.5, {}) == usual
    assert set(candidates(narrow, 4.5, {})) == {"IQ4_NL", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"}
    assert candidates(wide, 4.6, {"ffn_up": "Q6_K"}) == ["Q6_K"]
    assert candidates(narrow, 4.6, {"ffn_up": "Q6_K"}) == ["Q8_0"]
    embedding = Shape("token_embd.weight", 64, 512)
    assert (
        candidates(embedding, 4.5, {})
        == candidates(wide, 4.5, {}, weighted=False)
        == [name for name in usual if name != "IQ3_XXS"]
    )
    assert "IQ2_XS" in candidates(wide, 3.0, {})


@pytest.mark.parametrize("family", ["Qwen3MoeForCausalLM", "GptOssForCausalLM"])
def test_every_matrix_and_expert_has_its_place_in_transformers(family: str, tokenizer: Path, tmp_path: Path) -> None:
    model = read_model(FAMILIES[family](tmp_path / "model", tokenizer))
    network = load_reference(model.folder, 1)
    for shape in model.shapes:
        if shape.name.endswith(("exps.weight", "attn_q.weight", "token_embd.weight")):
            found = np.concatenate([place.detach().numpy() for place in places_of(model, network, shape)])
            assert (found == in_folder_order(model, shape, read_rows(model, shape, 0, shape.rows))).all(), shape.name


@pytest.mark.thorough
@pytest.mark.parametrize("family", ["Qwen3MoeForCausalLM", "GptOssForCausalLM"])
def test_types_of_experts_are_measured_too(family: str, tokenizer: Path, tmp_path: Path) -> None:
    base = FAMILIES[family](tmp_path / "model", tokenizer)
    bits = round(read_model(base).plan("Q4_K_M", importance=True).bits_per_weight, 3)
    ctx, _ = export(tmp_path / "target", base, "Q4_K_M", imatrix="always", target_bits=bits, **SMALL)
    record = parity(ctx)
    plain, chosen = record["files"]
    assert chosen["bits_per_weight"] <= bits
    assert chosen["quality"]["weights_mean_kl"] < 0.85 * plain["quality"]["weights_mean_kl"]
    assert record["target"]["mean_kl"] == pytest.approx(record["target"]["expected_mean_kl"], rel=0.5)
    assert record["passed"]
