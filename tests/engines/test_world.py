"""Processes that torchrun starts find each other and exchange facts; one process exchanges nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from engines.ranks.exchange import own_device
from engines.world import World, world

_RANK = """
import json, os, sys
from pathlib import Path
from engines.world import world

here = world()
here.connect()
later = here.sum_later([here.rank + 2.0])  # other exchanges may begin before its result is asked for
facts = {
    "rank": here.rank, "size": here.size, "local_rank": here.local_rank, "is_first": here.is_first,
    "sum": here.reduce_sum([here.rank + 1.0, 0.5]), "any": here.any(here.rank == 1),
    "later": later(),
    "all": [here.all_agree(True), here.all_agree(here.is_first)],
    "decided": here.decided(lambda: {"from": here.rank}), "gathered": here.gather_objects(here.rank * 10),
    "share": list(here.share([0, 1, 2, 3, 4])),
    "hidden": sorted({"RANK", "WORLD_SIZE", "LOCAL_RANK"} & set(os.environ)),
}
here.barrier()
Path(sys.argv[1], f"{here.rank}.json").write_text(json.dumps(facts))
os._exit(0)
"""


def test_two_processes_exchange_the_same_facts(tmp_path: Path) -> None:
    script = tmp_path / "rank.py"
    script.write_text(_RANK)
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", script, tmp_path],
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        timeout=300,
    )
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert [one["rank"] for one in (first, second)] == [0, 1]
    assert [one["is_first"] for one in (first, second)] == [True, False]
    assert [one["share"] for one in (first, second)] == [[0, 2, 4], [1, 3]]
    for one in (first, second):
        assert one["size"] == 2
        assert one["sum"] == [3.0, 1.0]
        assert one["any"]
        assert one["later"] == [5.0]
        assert one["all"] == [True, False]
        assert one["decided"] == {"from": 0}
        assert one["gathered"] == [0, 10]
        assert one["hidden"] == [], "accelerate would wrap the model by its own rules"


def test_one_process_exchanges_nothing_and_needs_no_group() -> None:
    alone = World()
    alone.connect()
    assert alone.is_first
    assert alone.reduce_sum([1.5]) == [1.5]
    assert alone.sum_later([1.5])() == [1.5]
    assert alone.decided(lambda: 3) == 3
    assert alone.gather_objects("a") == ["a"]
    assert alone.share([1, 2]) == [1, 2]
    assert alone.any(True)
    assert world() == alone


def test_a_rank_has_one_device_of_those_that_are_visible() -> None:
    assert [own_device(None, rank) for rank in (0, 1)] == ["0", "1"]
    assert [own_device("2,GPU-7", rank) for rank in (0, 1)] == ["2", "GPU-7"]
