"""Each family, from a model and its adapter to files: merged, written, proven, and answering like the model."""

from __future__ import annotations

from pathlib import Path

import pytest

from exporters.hf_model.architectures import ARCHITECTURES
from tests.exporters.exporting import export, merge, parity
from tests.exporters.family_models import FAMILIES, TARGETS
from tests.exporters.small_models import build_adapter

pytestmark = pytest.mark.torch
TYPES = ("F16", "Q8_0", "Q4_K_M")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_trained_merged_written_and_proven(family: str, tokenizer: Path, tmp_path: Path) -> None:
    base = FAMILIES[family](tmp_path / "base", tokenizer)
    targets = TARGETS.get(family, ("q_proj", "v_proj", "down_proj"))
    adapter = build_adapter(tmp_path / "adapter", base, targets=targets)
    merged, _ = merge(tmp_path / "m", base, adapter, parity_positions=64)
    ctx, result = export(tmp_path / "e", merged.out, *TYPES, parity_positions=160, max_length=80)
    record = parity(ctx)
    assert record["model"]["architecture"] == ARCHITECTURES[family].name
    for file in record["files"]:
        assert (file["meaning"]["findings"], file["bytes"]["findings"]) == ([], []), file["file"]
        assert file["bytes"]["equal"] == file["bytes"]["tensors"], "every tensor is byte-equal to the second path's"
    assert [file["file_type"] for file in record["files"]] == list(TYPES)
    assert result.metrics["f16_top1"] > 0.98
