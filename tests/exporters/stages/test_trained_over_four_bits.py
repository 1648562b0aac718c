"""Files of a model whose adapter was trained over a 4-bit base are compared with what was trained, which is another
model than the exported one."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.artifacts.manifest import read_manifest, write_manifest
from engines.commit import commit_output
from engines.context import StageResult
from engines.events.writers import Warned
from engines.run_dir.paths import RunDir
from exporters.lora.trained_model import trained_before_merge
from exporters.proof.parity_data import read_parity_data
from recipes.problems import OperatorError
from tests.exporters import exporting
from tests.exporters.small_models import build_adapter, build_model
from tests.stage_context import TriedContext

pytestmark = pytest.mark.torch
EVERY = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
NF4 = {"method": "bitsandbytes", "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": False}
POSITIONS, LENGTH = 96, 48
FIELDS: dict[str, Any] = {"parity_positions": POSITIONS, "max_length": LENGTH}


@dataclass(frozen=True)
class Trained:
    """A 16-bit base model, the adapter that a training over its 4-bit copy left, and the finished merge of both."""

    base: Path
    adapter: Path
    merged: Path
    metrics: dict[str, float]


def finished(ctx: TriedContext, result: StageResult) -> Path:
    """The output of a stage, committed with its manifest as an engine does it."""
    commit_output(ctx, result, dict(result.metrics), refused="")
    return RunDir(ctx.run_root).out(ctx.stage_name)


def adapter_over_four_bits(folder: Path, base: Path) -> Path:
    build_adapter(folder, base, targets=EVERY)
    (folder / "base.json").write_text(json.dumps({"path": str(base), "quantization": NF4}))
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tokenizer: Path) -> Trained:
    home = tmp_path_factory.mktemp("trained")
    base = build_model(home / "base", tokenizer, dtype="bfloat16")
    adapter = adapter_over_four_bits(home / "adapter", base)
    ctx, result = exporting.merge(home, base, adapter, parity_positions=POSITIONS)
    return Trained(base, adapter, finished(ctx, result), result.metrics)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, trained: Trained) -> tuple[TriedContext, StageResult]:
    return exporting.export(tmp_path_factory.mktemp("exported"), trained.merged, "F16", "Q8_0", **FIELDS)


def logits_by_transformers(trained: Trained, *, nf4: bool) -> np.ndarray[Any, Any]:
    """PEFT's adapter over the base, with or without NF4's values, on the windows that an export compares."""
    import torch
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(trained.base, dtype=torch.float32)
    for name, weight in model.named_parameters():
        if nf4 and name.endswith("_proj.weight"):
            packed, state = quantize_4bit(weight.data, blocksize=64, quant_type="nf4")
            weight.data = dequantize_4bit(packed, state).float()
    adapted = PeftModel.from_pretrained(model, trained.adapter).eval()
    tokenizer = AutoTokenizer.from_pretrained(trained.base)
    data = read_parity_data(None, tokenizer, positions=POSITIONS, max_length=LENGTH)
    with torch.no_grad():
        return np.concatenate([adapted(torch.tensor([list(ids)])).logits[0].numpy() for ids in data.windows])


def mean_kl(reference: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> float:
    def logs(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        moved = values.astype(np.float64) - values.max(axis=1, keepdims=True)
        result: np.ndarray[Any, Any] = moved - np.log(np.exp(moved).sum(axis=1, keepdims=True))
        return result

    expected, found = logs(reference), logs(other)
    return float((np.exp(expected) * (expected - found)).sum(axis=1).mean())


def test_the_distance_to_the_trained_model_is_that_of_transformers_and_peft(
    trained: Trained, exported: tuple[TriedContext, StageResult]
) -> None:
    four_bit = logits_by_transformers(trained, nf4=True)
    served = logits_by_transformers(trained, nf4=False)
    metrics, truth = exported[1].metrics, mean_kl(four_bit, served)
    assert truth > 1e-4, "the 4-bit base is another model"
    assert metrics["model_kl_to_trained"] == pytest.approx(truth, rel=0.02), "bfloat16 rounds the merge"
    same = float((four_bit.argmax(axis=1) == served.argmax(axis=1)).mean())
    assert metrics["model_top1_to_trained"] == pytest.approx(same, abs=0.03)


def test_files_of_the_merged_model_are_as_far_from_the_trained_one_as_that_model(
    exported: tuple[TriedContext, StageResult],
) -> None:
    ctx, result = exported
    metrics = result.metrics
    for name in ("f16", "q8_0"):
        assert metrics[f"{name}_mean_kl"] < 0.2 * metrics[f"{name}_kl_to_trained"], name
        assert metrics[f"{name}_kl_to_trained"] == pytest.approx(metrics["model_kl_to_trained"], rel=0.2), name
        assert 0.0 < metrics[f"{name}_top1_to_trained"] <= 1.0
    record = exporting.parity(ctx)
    assert record["trained_over"]["bnb_4bit_quant_type"] == "nf4"
    assert record["files"][0]["to_trained"]["mean_kl"] == metrics["f16_kl_to_trained"]
    assert not list(ctx.work.glob("*.f32"))


def test_a_merge_says_how_far_the_adapter_over_its_16_bit_base_is_too(trained: Trained) -> None:
    metrics = trained.metrics
    assert metrics["adapter_kl_to_trained"] == pytest.approx(metrics["kl_to_trained"], rel=0.02)
    assert 0.0 < metrics["adapter_top1_to_trained"] <= 1.0


@pytest.mark.thorough
def test_a_merge_in_one_pass_has_the_same_distance(
    tmp_path: Path, trained: Trained, exported: tuple[TriedContext, StageResult]
) -> None:
    ctx, result = exporting.export(tmp_path, trained.base, "F16", inputs={"adapter": trained.adapter}, adapter=str(
        trained.adapter
    ), **FIELDS)  # fmt: skip
    assert ctx.out.is_dir()
    for name in ("model_kl_to_trained", "f16_kl_to_trained"):
        assert result.metrics[name] == pytest.approx(exported[1].metrics[name], rel=1e-6), name


@pytest.mark.thorough
def test_a_merge_into_the_rounded_base_is_what_was_trained(tmp_path: Path, trained: Trained) -> None:
    (tmp_path / "merge").mkdir()
    given: dict[str, Any] = {"parity_positions": POSITIONS, "base_rounding": "nf4", "dtype": "float32"}
    merged = finished(*exporting.merge(tmp_path / "merge", trained.base, trained.adapter, **given))
    _, result = exporting.export(tmp_path, merged, "F16", **FIELDS)
    assert result.metrics["model_kl_to_trained"] < 1e-7
    assert result.metrics["f16_kl_to_trained"] == pytest.approx(result.metrics["f16_mean_kl"], abs=1e-6)


def test_a_gguf_adapter_over_each_file_is_compared_with_what_was_trained(tmp_path: Path, trained: Trained) -> None:
    adapters = [str(trained.adapter)]
    ctx, result = exporting.export(
        tmp_path, trained.base, "F16", inputs={"adapters[0]": trained.adapter}, adapters=adapters, **FIELDS
    )
    [said] = [e.message for e in ctx.events() if isinstance(e, Warned) and "in 4 bits" in e.message]
    assert "base_rounding" not in said, "a merge has that field, and an export has not"
    [name] = [name for name in result.metrics if name.endswith("_f16_kl_to_trained")]
    assert result.metrics[name] == pytest.approx(trained.metrics["kl_to_trained"], rel=0.5)
    assert result.metrics[name.replace("kl_to_trained", "mean_kl")] < 0.1 * result.metrics[name]
    assert result.metrics["f16_kl_to_trained"] == result.metrics["f16_mean_kl"], "the base alone is no tuned model"


@pytest.mark.thorough
def test_a_model_that_was_not_trained_over_four_bits_is_the_trained_model(tmp_path: Path, trained: Trained) -> None:
    _, result = exporting.export(tmp_path, trained.base, "F16", **FIELDS)
    assert result.metrics["f16_kl_to_trained"] == result.metrics["f16_mean_kl"]
    assert result.metrics["f16_top1_to_trained"] == result.metrics["f16_top1"]
    assert "model_kl_to_trained" not in result.metrics


@pytest.mark.thorough
def test_without_what_was_trained_an_export_warns_and_measures_no_distance(tmp_path: Path, trained: Trained) -> None:
    home = tmp_path / "home"
    shutil.copytree(trained.merged, home)
    manifest = read_manifest(home)
    for link in manifest["custody"]["ancestors"]:
        link["folder"] = str(tmp_path / "gone" / Path(link["folder"]).name)
    kept = {key: value for key, value in manifest.items() if key not in ("format", "files")}
    write_manifest(home, **kept)
    ctx, result = exporting.export(tmp_path, home, "F16", **FIELDS)
    assert not [name for name in result.metrics if name.endswith("to_trained")]
    assert [event.message for event in ctx.events() if isinstance(event, Warned) and "does not exist" in event.message]


def test_another_adapter_in_its_place_is_not_taken_for_the_trained_one(tmp_path: Path, trained: Trained) -> None:
    (tmp_path / "merge").mkdir()
    own = adapter_over_four_bits(tmp_path / "own", trained.base)
    merged = finished(*exporting.merge(tmp_path / "merge", trained.base, own, parity_positions=POSITIONS))
    found = trained_before_merge(merged)
    assert found is not None
    assert (found.base, found.adapter) == (trained.base, own)
    weights = (own / "adapter_model.safetensors").read_bytes()
    (own / "adapter_model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    with pytest.raises(OperatorError, match="is not what the merge read"):
        trained_before_merge(merged)


def test_half_of_an_adapter_is_not_what_was_trained(tmp_path: Path, trained: Trained) -> None:
    merged = finished(*exporting.merge(tmp_path, trained.base, trained.adapter, weights=[0.5]))
    with pytest.raises(OperatorError, match="only the merge of one adapter with weight 1"):
        trained_before_merge(merged)
