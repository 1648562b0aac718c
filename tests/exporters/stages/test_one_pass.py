"""Merge and conversion in one pass give the bytes of two steps, and the merged model is compared with the adapter over
its base model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engines.context import StageFailedError
from engines.events.writers import Warned
from exporters.hf_model.tensor_files import SafetensorsFolder, SafetensorsWriter
from exporters.lora.merge import Merged
from exporters.stages import export_stage
from exporters.stages.merge_parity import compare_merge
from recipes.problems import OperatorError
from recipes.stages.export import ExportStage
from tests.exporters import exporting
from tests.exporters.exporting import parity
from tests.exporters.small_models import build_adapter, build_model, copy_folder
from tests.stage_context import TriedContext, make_context

pytestmark = pytest.mark.torch
EVERY = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def one_pass(tmp_path: Path, base: Path, adapter: Path, *types: str, **fields: Any) -> TriedContext:
    tmp_path.mkdir(exist_ok=True)
    stage = {
        "name": "gguf", "kind": "export", "model": str(base), "adapter": str(adapter), "file_types": list(types),
        "parity_positions": 400, "max_length": 128, "threads": 1, **fields,
    }  # fmt: skip
    ctx = make_context(tmp_path, stage, inputs={"model": base, "adapter": adapter})
    export_stage.run(ctx)
    return ctx


def two_steps(tmp_path: Path, base: Path, adapter: Path, *types: str, **fields: Any) -> TriedContext:
    for name in ("merge", "export"):
        (tmp_path / name).mkdir(parents=True)
    merged, _ = exporting.merge(tmp_path / "merge", base, adapter)
    return exporting.export(tmp_path / "export", merged.out, *types, **fields)[0]


@pytest.mark.parametrize("dtype", [pytest.param("float32", marks=pytest.mark.thorough), "bfloat16"])
@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_one_pass_writes_the_bytes_of_a_merge_and_an_export(
    kind: str, dtype: str, tmp_path: Path, tokenizer: Path
) -> None:
    base = build_model(tmp_path / "base", tokenizer, dtype=dtype, hidden_size=256, intermediate_size=320)
    adapter = build_adapter(tmp_path / "adapter", base, targets=EVERY, use_dora=kind == "dora")
    fields = {"parity_positions": 0} if kind == "dora" else {"imatrix": "always", "imatrix_tokens": 256}
    fused = one_pass(tmp_path / "fused", base, adapter, "F16", "Q8_0", "Q4_K_M", **fields)
    apart = two_steps(tmp_path / "apart", base, adapter, "F16", "Q8_0", "Q4_K_M", **fields)
    for name in ("F16", "Q8_0", "Q4_K_M"):
        assert (fused.out / f"run-{name}.gguf").read_bytes() == (apart.out / f"run-{name}.gguf").read_bytes(), name
    assert not list(fused.out.glob("*.safetensors"))
    assert not list(fused.work.rglob("*.safetensors")), "no merged copy goes to the disk"


def test_one_pass_compares_the_files_with_the_merged_model_and_that_with_the_unmerged_adapter(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    record = parity(one_pass(tmp_path / "fused", base, adapter, "F16"))
    assert record["passed"]
    assert record["model"]["adapter"]["name"] == adapter.name
    assert record["adapter_over_base"]["mean_kl"] < 1e-9
    assert record["adapter_over_base"]["positions"] == record["files"][0]["quality"]["positions"]


def test_adapters_over_a_model_that_an_adapter_changes_are_refused() -> None:
    with pytest.raises(ValueError, match="adapters — cannot be combined with adapter, which changes the model"):
        ExportStage.model_validate({"name": "x", "kind": "export", "model": "m", "adapter": "a", "adapters": ["b"]})


def test_an_adapter_of_another_base_is_refused_before_anything_is_written(
    tmp_path: Path, tokenizer: Path, adapter: Path
) -> None:
    other = build_model(tmp_path / "other", tokenizer, hidden_size=128)
    with pytest.raises(OperatorError):
        one_pass(tmp_path / "fused", other, adapter, "F16")
    assert not list((tmp_path / "fused").rglob("*.gguf"))


def test_a_merge_is_compared_with_the_adapter_over_its_base(base: Path, adapter: Path, tmp_path: Path) -> None:
    ctx, result = exporting.merge(tmp_path, base, adapter, parity_positions=300)
    assert result.metrics["mean_kl"] < 1e-9
    assert result.metrics["top1"] == 1.0
    record = json.loads((ctx.out / "parity.json").read_text())
    assert record["merged"]["positions"] >= 300
    assert record["data"]["sha256"]


def test_rounding_a_merge_to_16_bits_is_reported_and_not_a_warning(tmp_path: Path, tokenizer: Path) -> None:
    base = build_model(tmp_path / "base", tokenizer, dtype="bfloat16")
    adapter = build_adapter(tmp_path / "adapter", base, targets=EVERY)
    ctx, result = exporting.merge(tmp_path, base, adapter, parity_positions=300)
    merged = json.loads((ctx.out / "parity.json").read_text())["merged"]
    assert merged["proof"]["mean_kl"] < 1e-9 < result.metrics["mean_kl"], "the sums are exact; rounding them costs more"
    assert merged["passed"]
    assert not [e for e in ctx.events() if isinstance(e, Warned) and "differs" in e.message]


def test_a_merge_can_skip_the_comparison(base: Path, adapter: Path, tmp_path: Path) -> None:
    ctx, result = exporting.merge(tmp_path, base, adapter, parity_positions=0)
    assert "mean_kl" not in result.metrics
    assert not (ctx.out / "parity.json").exists()


def test_merged_weights_that_are_not_the_trained_model_fail_the_merge(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    ctx, _ = exporting.merge(tmp_path, base, adapter, parity_positions=0)
    copy_folder(ctx.out, tmp_path / "kept")
    weights = SafetensorsFolder(tmp_path / "kept")
    header = {name: (info.dtype, info.shape) for name, info in weights.tensors.items()}
    with SafetensorsWriter(ctx.out / "model.safetensors", header, {"format": "pt"}) as writer:
        for name, info in weights.tensors.items():
            data = weights.read_bytes(name, 0, info.rows)
            writer.write(bytes(len(data)) if name.endswith("0.mlp.down_proj.weight") else data)
    whole = Merged(sum(info.values for info in weights.tensors.values()), 0, 0)
    ctx.stage = ctx.stage.model_copy(update={"parity_positions": 300})
    with pytest.raises(
        StageFailedError, match=r"the merged model differs from the adapter over its base model: tensor .*down_proj"
    ):
        compare_merge(ctx, base, adapter, whole)


def test_a_merge_too_large_for_the_comparison_warns(
    base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("exporters.stages.merge_parity.available_bytes", lambda: 1000)
    ctx, result = exporting.merge(tmp_path, base, adapter)
    assert "mean_kl" not in result.metrics
    assert any("was not compared" in event.message for event in ctx.events() if isinstance(event, Warned))
