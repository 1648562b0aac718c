"""Sharded checkpoints: whole or without a name at every crash, read by any number of ranks, never trusted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engines.artifacts.checkpoints import clean_leftovers, scan_attempt
from engines.artifacts.manifest import verify_manifest

pytestmark = pytest.mark.torch

ROOT = Path(__file__).resolve().parents[3]
POINTS = [
    (rank, at, count) for rank in (0, 1) for at, most in (("change", 24), ("fsync", 6)) for count in range(1, most + 1)
]
"""Sixty: each of two ranks dies before its K-th change to files and before its K-th sync, if it has so many."""
FEW = [(0, "change", 4), (0, "fsync", 3), (1, "change", 1), (1, "fsync", 2)]


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path) -> None:
    """The folder of an unfinished checkpoint has one for its shards."""
    (tmp_path / "shards").mkdir()


class Ranks:
    """Two ranks that save sharded checkpoints, of which one may die."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def save(self, folder: Path, step: int, death: tuple[int, str, int] | None = None) -> list[int]:
        rank, at, count = death or (None, "change", 0)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        wanted = {"folder": str(folder), "step": step, "seed": step, "rank": rank, "at": at, "count": count}
        self._process.stdin.write(json.dumps(wanted) + "\n")
        self._process.stdin.flush()
        codes: list[int] = json.loads(self._process.stdout.readline())
        return codes


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    program = Path(__file__).with_name("sharded_save.py")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, str(program)], **pipes, text=True, env=environment) as process:
        yield Ranks(process)


def whole(step: int) -> dict[str, Any]:
    import torch

    generator = torch.Generator().manual_seed(step)
    return {"embed": torch.randn(7, 4, generator=generator), "norm": torch.randn(4, generator=generator)}


def die_and_look(ranks: Ranks, folder: Path, points: list[tuple[int, str, int]]) -> int:
    """Save, die, and resume, at each point; the number of deaths."""
    import torch

    from engines.training.saves.shards import Shards

    assert ranks.save(folder, 1) == [0, 0]
    deaths, newest = 0, 1
    for step, point in enumerate(points, 2):
        codes = ranks.save(folder, step, point)
        died = codes[point[0]] == -signal.SIGKILL
        deaths += died
        complete, refused = scan_attempt(folder)
        assert all("temporary name" in reason for _, reason in refused), point
        newest = step if (folder / f"step-{step}").exists() else newest
        assert complete[-1].step == newest
        assert died or newest == step, "a save without a death is a checkpoint"
        assert verify_manifest(complete[-1].path) == [], point
        shards = Shards(complete[-1].path)
        assert all(torch.equal(shards.read(name), value) for name, value in whole(newest).items())
        clean_leftovers(folder)
    return deaths


def test_a_sharded_save_in_which_a_rank_dies_leaves_a_valid_checkpoint(tmp_path: Path, ranks: Ranks) -> None:
    (tmp_path / "1" / "checkpoints").mkdir(parents=True)
    assert die_and_look(ranks, tmp_path / "1" / "checkpoints", FEW) == len(FEW)


@pytest.mark.thorough
def test_a_sharded_save_leaves_a_valid_checkpoint_at_sixty_points(tmp_path: Path, ranks: Ranks) -> None:
    assert len(POINTS) == 60
    (tmp_path / "1" / "checkpoints").mkdir(parents=True)
    assert die_and_look(ranks, tmp_path / "1" / "checkpoints", POINTS) > 20


def test_a_rank_that_cannot_write_is_named_with_its_reason(tmp_path: Path) -> None:
    import torch

    from engines.artifacts.sharded import SHARDS, shard_name
    from engines.training.saves.shards import Piece, collect_shards, write_shard

    write_shard(tmp_path, 0, 2, {"a": Piece(torch.zeros(2), (0,), (4,))})
    (tmp_path / SHARDS / shard_name(1, 2)).mkdir()
    with pytest.raises(Exception, match="directory"):
        write_shard(tmp_path, 1, 2, {"a": Piece(torch.zeros(2), (2,), (4,))})
    with pytest.raises(OSError, match=r"rank 1: .*directory"):
        collect_shards(tmp_path, 2, why_stop=str, timeout_s=60)


def test_a_rank_that_writes_nothing_is_not_waited_for_when_the_attempt_ends(tmp_path: Path) -> None:
    import torch

    from engines.training.saves.shards import Piece, collect_shards, write_shard

    write_shard(tmp_path, 0, 2, {"a": Piece(torch.zeros(2), (0,), (4,))})
    with pytest.raises(OSError, match="the attempt ends"):
        collect_shards(tmp_path, 2, why_stop=lambda: "the attempt ends", timeout_s=60)


def test_a_shard_that_changed_after_its_receipt_is_refused(tmp_path: Path) -> None:
    import torch

    from engines.artifacts.sharded import SHARDS, shard_name
    from engines.training.saves.shards import Piece, collect_shards, write_shard

    write_shard(tmp_path, 0, 1, {"a": Piece(torch.zeros(2), (0,), (2,))})
    data = bytearray((tmp_path / SHARDS / shard_name(0, 1)).read_bytes())
    data[-1] ^= 1
    (tmp_path / SHARDS / shard_name(0, 1)).write_bytes(data)
    with pytest.raises(OSError, match="is not what rank 0 wrote"):
        collect_shards(tmp_path, 1, why_stop=str, timeout_s=60)


@pytest.mark.parametrize("other", [1, 2, 3, 4, 7])
def test_other_numbers_of_ranks_read_their_own_parts(tmp_path: Path, other: int) -> None:
    """Written by three ranks: rows, one empty rank's share, a scalar, and an empty tensor."""
    import torch

    from engines.training.saves.shards import Piece, Shards, collect_shards, write_shard

    rows, square = torch.arange(20, dtype=torch.bfloat16).reshape(5, 4), torch.arange(16.0).reshape(4, 4)
    cuts = [(0, 2), (2, 4), (4, 5)]
    for rank, (begin, end) in enumerate(cuts):
        pieces = {"rows": Piece(rows[begin:end], (begin, 0), (5, 4))}
        if rank < 2:
            pieces["square"] = Piece(square[:, 2 * rank : 2 * rank + 2], (0, 2 * rank), (4, 4))
        else:
            pieces["square"] = Piece(square[:0], (4, 0), (4, 4))
            pieces |= {"step": Piece(torch.tensor(3.0), (), ()), "none": Piece(torch.empty(0, 2), (0, 0), (0, 2))}
        write_shard(tmp_path, rank, 3, pieces)
    collect_shards(tmp_path, 3, why_stop=str, timeout_s=60)
    shards = Shards(tmp_path)
    assert (shards.ranks, sorted(shards.names)) == (3, ["none", "rows", "square", "step"])
    size = -(-5 // other)
    parts = [shards.read("rows", ((begin, 0), (min(size, 5 - begin), 4))) for begin in range(0, 5, size)]
    assert torch.equal(torch.cat(parts), rows)
    assert parts[0].dtype == torch.bfloat16
    assert torch.equal(shards.read("square", ((1, 1), (2, 2))), square[1:3, 1:3])
    assert shards.read("step").item() == 3
    assert shards.read("none").shape == (0, 2)


def index_of(folder: Path) -> dict[str, Any]:
    import torch

    from engines.training.saves.shards import Piece, collect_shards, write_shard

    for rank in range(2):
        write_shard(folder, rank, 2, {"a": Piece(torch.zeros(2, 3), (2 * rank, 0), (4, 3))})
    collect_shards(folder, 2, why_stop=str, timeout_s=60)
    body: dict[str, Any] = json.loads((folder / "shards" / "shards.json").read_text())
    return body


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("format",), 2),
        (("ranks",), True),
        (("ranks",), 10**9),
        (("tensors",), []),
        (("tensors", "a"), None),
        (("tensors", "a", "dtype"), "load"),
        (("tensors", "a", "shape"), [4, -3]),
        (("tensors", "a", "shape"), [4, 10**12]),
        (("tensors", "a", "parts"), []),
        (("tensors", "a", "parts", 0, "file"), "../../etc/passwd"),
        (("tensors", "a", "parts", 0, "file"), "/etc/passwd"),
        (("tensors", "a", "parts", 0, "offset"), [1, 0]),
        (("tensors", "a", "parts", 0, "offset"), [0]),
        (("tensors", "a", "parts", 0, "shape"), [2, 3, 1]),
        (("tensors", "a", "parts", 1, "offset"), [0, 0]),
        (("tensors", "a", "parts", 1, "shape"), [2.0, 3]),
    ],
)
def test_an_index_that_does_not_describe_whole_tensors_is_refused(
    tmp_path: Path, path: tuple[Any, ...], value: Any
) -> None:
    from engines.artifacts.sharded import ShardsError
    from engines.training.saves.shards import Shards

    body = index_of(tmp_path)
    place: Any = body
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    (tmp_path / "shards" / "shards.json").write_text(json.dumps(body))
    with pytest.raises(ShardsError):
        Shards(tmp_path)


def test_a_shard_that_is_missing_or_has_another_tensor_is_refused(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    from engines.artifacts.sharded import SHARDS, ShardsError, shard_name
    from engines.training.saves.shards import Shards

    index_of(tmp_path)
    save_file({"a": torch.zeros(3, 2)}, tmp_path / SHARDS / shard_name(1, 2))
    with pytest.raises(ShardsError, match="has the shape"):
        Shards(tmp_path).read("a")
    (tmp_path / SHARDS / shard_name(1, 2)).unlink()
    with pytest.raises(ShardsError, match="cannot be read"):
        Shards(tmp_path).read("a")
