"""Two FSDP2 processes save in shards; one process reads them, continues with equal losses, and gives the same file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.torch

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("divided")
    (folder / "sharded").mkdir()
    program = Path(__file__).with_name("divided_toy.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(program)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([*command, str(folder)], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_each_process_has_written_about_half(saved: Path) -> None:
    sizes = [path.stat().st_size for path in sorted((saved / "sharded").glob("shard-*.safetensors"))]
    assert len(sizes) == 2
    assert max(sizes) < 1.3 * min(sizes)
    assert [path.name for path in (saved / "sharded").glob("*.json")] == ["shards.json"], "no receipt is left"


def test_consolidated_weights_have_the_bytes_of_a_save_by_one_process(saved: Path, tmp_path: Path) -> None:
    from engines.training.saves.consolidate import write_consolidated

    write_consolidated(saved / "sharded", tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == (saved / "one" / "model.safetensors").read_bytes()


def test_one_process_continues_with_the_losses_of_two(saved: Path) -> None:
    from engines.training.saves.divided import fill
    from engines.training.saves.shards import Shards
    from tests.engines.training.divided_toy import optimizer_of, tensors_of, toy, train

    expected = json.loads((saved / "losses.json").read_text())
    model = toy()
    optimizer = optimizer_of(model)
    assert train(model, optimizer, range(3)) == pytest.approx(expected[:3], rel=1e-6)
    other = toy()
    later = optimizer_of(other)
    train(other, later, range(100, 101))  # the optimizer has its tensors, and other values
    missing = fill(tensors_of(other, later), Shards(saved / "sharded"))
    assert missing == ["model/lm_head.weight"], "it is the embedding's own weight"
    assert train(other, later, range(3, 5)) == pytest.approx(expected[3:], rel=1e-6)
