"""Adapters as Unsloth, LLaMA-Factory and Axolotl save them: the same merge as PEFT's, bit for bit.

`layouts/` has what each library wrote: names, types and shapes of the tensors, settings, files. The values are made
here.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import pytest

from exporters.lora.adapter import read_adapter
from exporters.lora.merge import merge
from recipes.problems import OperatorError
from tests.exporters.lora.adapting import distance, ours
from tests.exporters.small_models import build_model

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore::UserWarning")]
LAYOUTS = {path.stem: path for path in sorted((Path(__file__).parent / "layouts").glob("*.json"))}
ROWS = 1203


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, tokenizer: Path) -> Path:
    return build_model(
        tmp_path_factory.mktemp("base"), tokenizer, family="Qwen2", vocab_size=ROWS, hidden_size=256,
        intermediate_size=512, num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip


def made(layout: dict[str, Any], folder: Path) -> Path:
    """An adapter folder of a layout; tensors that are copies of another have its values."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(layout["config"]))
    values = {}
    for name, (dtype, shape) in layout["tensors"].items():
        assert dtype == "F32"
        source = torch.Generator().manual_seed(zlib.crc32(name.replace(".modules_to_save", "").encode()))
        values[name] = 0.05 * torch.randn(shape, generator=source)
    save_file(values, folder / "adapter_model.safetensors", layout["metadata"])
    return folder


def peft_merge(base: Path, adapter: Path, rows: int) -> dict[str, Any]:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if rows != ROWS:
        model.resize_token_embeddings(rows, mean_resizing=False)
    return dict(PeftModel.from_pretrained(model, adapter).merge_and_unload().state_dict())


@pytest.mark.parametrize("name", LAYOUTS)
def test_an_adapter_of_another_trainer_is_merged_as_peft_merges_it(name: str, base: Path, tmp_path: Path) -> None:
    layout = json.loads(LAYOUTS[name].read_text())
    adapter = made(layout, tmp_path / "adapter")
    rows = layout["tensors"].get("base_model.model.lm_head.weight", ["", [ROWS]])[1][0]
    (tmp_path / "out").mkdir()
    merge(base, [(adapter, 1.0)], tmp_path / "out")
    assert distance(ours(tmp_path / "out"), peft_merge(base, adapter, rows)) == 0.0
    assert json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"] == rows


def test_a_copy_over_what_pissa_left_of_the_base_is_refused(tmp_path: Path) -> None:
    layout = json.loads(LAYOUTS["llama-factory-pissa"].read_text())
    outer = made(layout, tmp_path / "tuned")
    layout["config"]["init_lora_weights"] = True
    for name in ("pissa_backup", "pissa_init"):
        copy = made(layout, outer / name)
        with pytest.raises(OperatorError, match="copy of a PiSSA adapter over what PiSSA left") as caught:
            read_adapter(copy)
        assert "tuned/pissa_converted" in caught.value.hint
    made(layout, tmp_path / "pissa_backup")
    read_adapter(tmp_path / "pissa_backup")


def test_every_trainer_has_a_layout() -> None:
    assert {name.split("-")[0] for name in LAYOUTS} == {"unsloth", "llama", "axolotl"}
    for path in LAYOUTS.values():
        assert json.loads(path.read_text())["library"]
