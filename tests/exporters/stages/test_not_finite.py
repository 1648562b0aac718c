"""A model with a weight that is not finite is not exported."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from recipes.problems import OperatorError
from tests.exporters.exporting import export
from tests.exporters.small_models import build_model

pytestmark = pytest.mark.torch


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_model_with_a_value_that_is_not_finite_is_refused_by_the_tensor_s_name(
    tmp_path: Path, tokenizer: Path, value: float
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    folder = build_model(tmp_path / "model", tokenizer)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] = value
    model.save_pretrained(folder)
    for file_type in ("F16", "Q8_0"):
        with pytest.raises(OperatorError, match=r"blk\.1\.ffn_up\.weight contains a value that is not finite"):
            export(tmp_path / file_type, folder, file_type, parity_positions=0)
        assert not list((tmp_path / file_type).rglob("*.gguf"))
