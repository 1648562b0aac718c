"""LoRA adapters as GGUF: llama.cpp's base + adapter is transformers' base + PEFT adapter."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from exporters.gguf.adapter import plan_adapter, write_adapter
from exporters.gguf.write import read_model
from exporters.lora.adapter import read_adapter
from recipes.problems import OperatorError
from tests.exporters.exporting import parity
from tests.exporters.small_models import build_adapter, build_model, copy_folder, edit_json
from tests.stage_context import TriedContext, make_context

pytestmark = pytest.mark.torch
EVERY = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def export_with(tmp_path: Path, model: Path, adapters: dict[str, Path], **fields: Any) -> TriedContext:
    from exporters.stages import export_stage

    stage = {
        "name": "gguf", "kind": "export", "model": str(model), "adapters": list(map(str, adapters.values())),
        "file_types": ["F16"], "parity_positions": 400, "max_length": 128, "threads": 1, **fields,
    }  # fmt: skip
    inputs: dict[str, Path | str] = {
        "model": model,
        **{f"adapters[{n}]": path for n, path in enumerate(adapters.values())},
    }
    ctx = make_context(tmp_path, stage, inputs=inputs)
    export_stage.run(ctx)
    return ctx


KINDS: dict[str, dict[str, Any]] = {
    "attention": {"targets": ("q_proj", "k_proj")},
    "all layers": {"targets": EVERY},
    "rslora": {"targets": EVERY, "use_rslora": True},
    "patterns": {"targets": EVERY, "rank_pattern": {"q_proj": 2, "v_proj": 16}, "alpha_pattern": {"k_proj": 40}},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["Llama", pytest.param("Qwen3", marks=pytest.mark.thorough)])
def test_base_and_adapter_in_llama_cpp_are_base_and_adapter_in_transformers(
    family: str, kind: str, tmp_path: Path, tokenizer: Path
) -> None:
    base = build_model(tmp_path / "base", tokenizer, family=family)
    adapter = build_adapter(tmp_path / "tuned", base, **KINDS[kind])
    (tmp_path / "work").mkdir()
    ctx = export_with(tmp_path / "work", base, {"tuned": adapter}, file_types=["F16", "Q8_0", "Q4_K_M"])
    (record,) = parity(ctx)["adapters"]
    by_type = {item["file_type"]: item for item in record["over"]}
    assert by_type["F16"]["mean_kl"] < 1e-6
    assert by_type["Q8_0"]["mean_kl"] < 1e-4
    assert all(item["passed"] for item in record["over"])
    plain = {item["file_type"]: item for item in parity(ctx)["files"]}
    assert abs(plain["F16"]["quality"]["reference_loss"] - by_type["F16"]["reference_loss"]) > 1e-4, (
        "the adapter changes the model"
    )


@pytest.mark.parametrize(("dtype", "share"), [("F32", 4), ("F16", 2)])
def test_its_type_is_the_recipes(tmp_path: Path, base: Path, adapter: Path, dtype: str, share: int) -> None:
    ctx = export_with(tmp_path, base, {"tuned": adapter}, adapter_type=dtype, parity_positions=0)
    (file,) = ctx.out.glob(f"*-{dtype}-LoRA.gguf")
    tensors = gguf.GGUFReader(file).tensors
    plan = plan_adapter(read_model(base), read_adapter(adapter))
    assert sum(tensor.data.nbytes for tensor in tensors) == plan.parameters * share == plan.bytes(dtype)  # type: ignore[arg-type]
    assert {tensor.tensor_type.name for tensor in tensors} == {dtype}


def test_the_file_describes_itself_and_names_its_tensors(tmp_path: Path, base: Path, adapter: Path) -> None:
    model = read_model(base)
    plan = plan_adapter(model, read_adapter(adapter))
    write_adapter(model, plan, tmp_path / "a.gguf", "F32")
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    fields = {name: reader.fields[name].contents() for name in reader.fields}
    assert (fields["general.type"], fields["general.architecture"]) == ("adapter", "llama")
    assert (fields["adapter.type"], fields["adapter.lora.alpha"]) == ("lora", 12.0)
    names = {tensor.name for tensor in reader.tensors}
    assert names == {
        f"blk.{n}.{part}.weight.lora_{side}"
        for n in (0, 1)
        for part in ("attn_q", "attn_v", "ffn_down")
        for side in "ab"
    }
    assert not list(tmp_path.glob("*.partial"))


def test_several_adapters_over_one_base_have_files_and_figures_of_their_own(tmp_path: Path, base: Path) -> None:
    adapters = {}
    for number, name in enumerate(("atlas", "nexus")):
        adapters[name] = build_adapter(tmp_path / name, base, targets=EVERY, r=4 + number)
    (tmp_path / "work").mkdir()
    ctx = export_with(tmp_path / "work", base, adapters)
    record = parity(ctx)
    assert [item["name"] for item in record["adapters"]] == ["atlas", "nexus"]
    losses = [item["over"][0]["loss"] for item in record["adapters"]]
    assert losses[0] != losses[1]
    assert [re.sub(r"^run-", "", path.name) for path in sorted(ctx.out.glob("*LoRA.gguf"))] == [
        "atlas-F16-LoRA.gguf",
        "nexus-F16-LoRA.gguf",
    ]
    assert (ctx.out / "Modelfile.run-atlas-F16-LoRA").read_text().splitlines()[1] == "ADAPTER ./run-atlas-F16-LoRA.gguf"


def test_an_adapter_with_rows_out_of_order_is_caught(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from engines.events.writers import Warned
    from exporters.gguf import adapter as gguf_adapter

    adapter = build_adapter(tmp_path / "tuned", base, targets=("q_proj", "k_proj"))
    (tmp_path / "work").mkdir()
    monkeypatch.setattr(gguf_adapter, "row_order", lambda _model, _name, rows: np.arange(rows))
    ctx = export_with(tmp_path / "work", base, {"tuned": adapter})
    assert [path.name for path in (ctx.out / "refused").iterdir()] == ["run-tuned-F16-LoRA.gguf"]
    warnings = [event.message for event in ctx.events() if isinstance(event, Warned)]
    assert any("run-tuned-F16-LoRA.gguf is refused" in text and "over F16: mean KL" in text for text in warnings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"use_dora": True}, "uses DoRA, which GGUF adapters do not support"),
        ({"modules_to_save": ["norm"]}, "a full tensor (modules_to_save), model.layers.0.input_layernorm.weight"),
        ({"trainable_token_indices": [3]}, "rows of single tokens (trainable_token_indices), model.embed_tokens"),
        ({"lora_bias": True}, "a change of a bias (lora_bias), model.layers.0.mlp.down_proj.bias"),
        ({"init_lora_weights": "olora"}, "init_lora_weights = olora"),
        ({"targets": ("embed_tokens", "q_proj")}, "embed_tokens"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_the_format_does_not_support_is_refused_by_name(
    tmp_path: Path, base: Path, settings: Any, message: str
) -> None:
    adapter = build_adapter(tmp_path / "tuned", base, **settings)
    with pytest.raises(OperatorError) as caught:
        plan_adapter(read_model(base), read_adapter(adapter))
    assert message in str(caught.value)
    assert "merge" in caught.value.hint


def test_an_adapter_of_another_base_is_refused(tmp_path: Path, base: Path, tokenizer: Path) -> None:
    wide = build_model(tmp_path / "wide", tokenizer, intermediate_size=768)
    adapter = build_adapter(tmp_path / "tuned", wide)
    with pytest.raises(OperatorError, match=r"down_proj — got shape \(256, 768\); the base model has \(256, 512\)"):
        plan_adapter(read_model(base), read_adapter(adapter))
    deep = build_model(tmp_path / "deep", tokenizer, num_hidden_layers=3)
    with pytest.raises(OperatorError, match=r"layers\.2\..*no separate tensor"):
        plan_adapter(read_model(base), read_adapter(build_adapter(tmp_path / "tall", deep)))


def test_values_outside_the_range_of_f16_leave_no_file(tmp_path: Path, base: Path, adapter: Path) -> None:
    from safetensors.torch import load_file, save_file

    spoiled = copy_folder(adapter, tmp_path / "spoiled")
    tensors = load_file(spoiled / "adapter_model.safetensors")
    name = next(name for name in tensors if "q_proj.lora_B" in name)
    tensors[name] = tensors[name] * 1e7
    save_file(tensors, spoiled / "adapter_model.safetensors", {"format": "pt"})
    model = read_model(base)
    plan = plan_adapter(model, read_adapter(spoiled))
    with pytest.raises(OperatorError, match=r"attn_q\.weight\.lora_b contains .* outside the range of F16"):
        write_adapter(model, plan, tmp_path / "a.gguf", "F16")
    assert not list(tmp_path.glob("a.gguf*"))
    write_adapter(model, plan, tmp_path / "a.gguf", "F32")


def test_two_adapters_of_one_name_are_two_files(tmp_path: Path, base: Path, adapter: Path) -> None:
    twin = copy_folder(adapter, tmp_path / "other" / adapter.name)
    edit_json(twin / "adapter_config.json", inference_mode=True)
    ctx = export_with(tmp_path, base, {"one": adapter, "two": twin}, parity_positions=0)
    assert len(list(ctx.out.glob("*-LoRA.gguf"))) == 2
