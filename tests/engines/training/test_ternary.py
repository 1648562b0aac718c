"""linear = "ternary": trained with -s, 0 and s, resumed bit for bit, and stored exactly by the ternary types."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from engines.events.steps import Step
from engines.files import file_sha256
from recipes.problems import OperatorError, RecipeError
from tests.engines.training.attempts import committed_steps, context, of_kind, resume_point, run_stage, trajectory
from tests.engines.training.tiny import PRETRAIN, weights_sha256, write_tokens
from tests.exporters.small_models import VOCAB, build_tokenizer

pytestmark = pytest.mark.torch
STAGE: dict[str, Any] = {
    **PRETRAIN, "attention_dropout": 0.0, "max_steps": 5, "linear": "ternary", "weight_decay": 0.1, "save_steps": 3,
    "hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tokens with a tokenizer that files can have."""
    folder = write_tokens(tmp_path_factory.mktemp("tokens"), {"train": 16 * 21 + 3, "val": 100})
    shutil.rmtree(folder / "tokenizer")
    build_tokenizer(folder / "tokenizer")
    described = json.loads((folder / "tokens.json").read_text())
    (folder / "tokens.json").write_text(
        json.dumps(
            {
                **described,
                "vocab_size": VOCAB,
                "tokenizer_sha256": file_sha256(folder / "tokenizer" / "tokenizer.model"),
            }
        )
    )
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tokens: Path) -> Any:
    ctx = context(tmp_path_factory.mktemp("ternary"), STAGE, {"data": tokens})
    assert run_stage(ctx) is not None
    return ctx


def _projections(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return {name: value for name, value in load_file(folder / "model.safetensors").items() if "_proj" in name}


def test_losses_norms_and_rates_are_those_of_a_loop_by_hand_and_the_model_has_the_values_it_computed_with(
    trained: Any, tokens: Path
) -> None:
    import torch

    from tests.engines.training.from_scratch import assert_same_steps, new_model, steps, whole_windows

    class StraightThrough(torch.nn.Module):
        """The rounded values exactly, with the gradient of the weight: weight - weight is zero."""

        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return _rounded(weight).detach() + (weight - weight.detach())

    shape = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    more = {"vocab_size": VOCAB, "max_position_embeddings": 16, "rms_norm_eps": 1e-5, "tie_word_embeddings": True}
    model = new_model("Llama", {**{name: STAGE[name] for name in shape}, **more})
    projections = {name: module for name, module in model.named_modules() if name.endswith("_proj")}
    for module in projections.values():
        torch.nn.utils.parametrize.register_parametrization(module, "weight", StraightThrough())
    assert_same_steps(of_kind(trained, Step), list(steps(model, *whole_windows(tokens, 16), STAGE)))
    for name, value in _projections(trained.out).items():
        by_hand = projections[name.removesuffix(".weight")].parametrizations.weight.original
        assert torch.unique(value.abs()).numel() <= 2, "zero and one magnitude"
        torch.testing.assert_close(value, _rounded(by_hand).detach(), atol=1e-6, rtol=1e-3)


def _rounded(weight: Any) -> Any:
    import torch

    scale = weight.detach().abs().mean().to(torch.float16).float()
    return torch.clamp(torch.round(weight / scale), -1, 1) * scale


def test_a_resume_continues_bit_for_bit_from_the_weights_before_the_rounding(
    trained: Any, tokens: Path, tmp_path: Path
) -> None:
    import torch

    assert committed_steps(trained, 1) == [3, 5]
    point = resume_point(trained, 3)
    assert all(torch.unique(value).numel() > 3 for value in _projections(point.path).values())
    again = context(tmp_path, STAGE, {"data": tokens}, attempt=2, resume=point)
    assert run_stage(again) is not None
    assert trajectory(again, 2) == trajectory(trained, 1, after=3)
    assert weights_sha256(again.out) == weights_sha256(trained.out)


def test_files_of_the_ternary_types_pass_their_proofs_and_have_exactly_the_trained_values(
    trained: Any, tmp_path: Path
) -> None:
    import numpy as np
    from gguf import GGUFReader
    from gguf.quants import dequantize

    from exporters.gguf.write import read_model, read_rows
    from exporters.ternary.i2s_file import validate
    from tests.exporters.exporting import export, parity

    ctx, _ = export(tmp_path, trained.out, "TQ1_0", "TQ2_0", i2s="x86-128", parity_positions=32, max_length=16)
    assert parity(ctx)["passed"] is True
    model = read_model(trained.out)
    shapes = {shape.name: shape for shape in model.shapes if shape.layer is not None and shape.dimensions == 2}
    assert len(shapes) == 7
    for name in ("TQ1_0", "TQ2_0"):
        file = GGUFReader(next(ctx.out.glob(f"*-{name}.gguf")))
        tensors = {tensor.name: tensor for tensor in file.tensors if tensor.name in shapes}
        assert {tensor.tensor_type.name for tensor in tensors.values()} == {name}
        for key, shape in shapes.items():
            values = dequantize(tensors[key].data, tensors[key].tensor_type)
            assert np.array_equal(values, read_rows(model, shape, 0, shape.rows)), (name, key)
    assert validate(next(ctx.out.glob("*-I2_S-*.gguf")), model)["compared"] is True


RECIPE = """schema = 1
name = "small"
[[stage]]
name = "base"
kind = "pretrain"
data = "%s"
max_length = 64
hidden_size = 256
intermediate_size = 256
num_hidden_layers = 1
num_attention_heads = 4
num_key_value_heads = 2
linear = "%s"
[[stage]]
name = "tuned"
kind = "finetune"
output = "model"
model = "base"
data = "%s"
[[stage]]
name = "gguf"
kind = "export"
model = "%s"
file_types = ["F16", "TQ2_0"]
i2s = "x86-128"
"""


@pytest.mark.parametrize(
    ("linear", "model", "expected"),
    [
        ("float", "base", 'but base is not trained with linear = "ternary"'),
        ("ternary", "tuned", "but tuned has changed the ternary values of base"),
        ("ternary", "base", None),
    ],
)
def test_ternary_types_of_a_model_with_other_values_are_refused_when_the_recipe_is_checked(
    linear: str, model: str, expected: str | None, tokens: Path, tmp_path: Path
) -> None:
    from cockpit.planning.model_check import check_models
    from recipes.load import load_recipe

    file = tmp_path / "small.toml"
    file.write_text(RECIPE % (tokens, linear, tokens, model))
    loaded = load_recipe(file)
    if expected is None:
        check_models(loaded)
        return
    with pytest.raises(RecipeError) as caught:
        check_models(loaded)
    assert [problem.key for problem in caught.value.problems] == ["gguf.file_types", "gguf.i2s"]
    assert all(expected in problem.words for problem in caught.value.problems)


def test_weights_before_their_rounding_are_no_model_and_no_start_of_another_training(
    trained: Any, tokens: Path, tmp_path: Path
) -> None:
    from engines.json_text import read_object
    from engines.training.inputs import refuse_missing_weights
    from exporters.gguf.write import read_model

    folder = resume_point(trained, 3).path
    with pytest.raises(OperatorError, match="before their rounding, which is another model"):
        read_model(folder)
    with pytest.raises(OperatorError, match=r"model — .* before their rounding"):
        refuse_missing_weights(folder, [])
    refuse_missing_weights(trained.out, [])
    other = context(tmp_path, {**STAGE, "linear": "float"}, {"data": tokens, "start_from": folder})
    with pytest.raises(OperatorError, match=r"start_from — .* before their rounding"):
        run_stage(other)
    assert "linear" not in read_object(trained.out / "config.json")
