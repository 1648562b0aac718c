"""The README's own recipe, on a model folder and a data folder as a newcomer has them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cockpit.runs.reader import read_now
from engines.run_dir import RunDir
from tests.exporters.small_models import build_model, build_tokenizer
from tests.runs.harness import assert_no_process_left

pytestmark = [pytest.mark.torch, pytest.mark.slow]
ROOT = Path(__file__).resolve().parents[2]


def write_conversations(file: Path, things: list[str]) -> None:
    """Conversations in the form that the README shows."""
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"How do I look after {thing}?"},
                {"role": "assistant", "content": f"Keep {thing} dry and check it every week."},
            ]
        }
        for thing in things
    ]
    file.parent.mkdir(exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_the_recipe_of_the_readme_trains_a_model_on_data_in_a_folder(tmp_path: Path) -> None:
    text = re.findall(r"```toml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[0]
    (tmp_path / "mine.toml").write_text(text)
    build_model(tmp_path / "my-model", build_tokenizer(tmp_path / "tokenizer"))
    write_conversations(tmp_path / "my-data" / "train.jsonl", [f"machine {number}" for number in range(16)])
    write_conversations(tmp_path / "my-data" / "val.jsonl", [f"engine {number}" for number in range(4)])
    runs = tmp_path / "runs"
    command = [sys.executable, "-m", "cockpit", "run", str(tmp_path / "mine.toml"), "--runs-dir", str(runs)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    run = RunDir(next(path.parent for path in runs.glob("*/run.json")))
    assert read_now(run).state.state == "succeeded"
    assert_no_process_left(run)
    assert (run.out("tuned") / "adapter_model.safetensors").is_file()
    assert (run.out("merged") / "model.safetensors").is_file()
    assert sorted(path.stem.rpartition("mine-")[2] for path in run.out("gguf").glob("*.gguf")) == [
        "F16",
        "Q4_K_M",
        "Q8_0",
    ]
    assert json.loads((run.out("gguf") / "parity.json").read_text())["passed"] is True
