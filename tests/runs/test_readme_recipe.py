"""The README's first recipe, on a model folder and a data folder."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.exporters.small_models import build_model, build_tokenizer
from tests.runs.harness import ROOT, run_to_success

pytestmark = [pytest.mark.torch, pytest.mark.slow]


def write_answers(file: Path, things: list[str]) -> None:
    """Questions with answers in the form that the README shows."""
    rows = [
        {"instruction": f"How do I look after {thing}?", "output": f"Keep {thing} dry and check it every week."}
        for thing in things
    ]
    file.parent.mkdir(exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_the_recipe_of_the_readme_trains_a_model_on_data_in_a_folder(tmp_path: Path) -> None:
    text = re.findall(r"```toml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[0]
    (tmp_path / "mine.toml").write_text(text)
    build_model(tmp_path / "my-model", build_tokenizer(tmp_path / "tokenizer"))
    write_answers(tmp_path / "my-data" / "train.jsonl", [f"machine {number}" for number in range(16)])
    write_answers(tmp_path / "my-data" / "val.jsonl", [f"engine {number}" for number in range(4)])
    run, _ = run_to_success(tmp_path / "mine.toml", tmp_path / "runs")
    assert (run.out("tuned") / "adapter_model.safetensors").is_file()
    assert (run.out("merged") / "model.safetensors").is_file()
    assert sorted(path.stem.rpartition("mine-")[2] for path in run.out("gguf").glob("*.gguf")) == [
        "F16",
        "Q4_K_M",
        "Q8_0",
    ]
    assert json.loads((run.out("gguf") / "parity.json").read_text())["passed"] is True
