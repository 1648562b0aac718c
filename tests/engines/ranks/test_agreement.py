"""What the processes of all hosts must have in common."""

from __future__ import annotations

from dataclasses import replace

from engines.ranks.agreement import Beginning, disagreement

FIRST = Beginning("node-0", "20261127-1200-x", "aa", (20, "ff"), "/runs/a", "/runs/a/stages/b/1/checkpoints/step-20")
OTHER = replace(FIRST, host="node-1", run="20261127-1201-x", root="/runs/b")


def test_other_hosts_runs_are_no_difference() -> None:
    assert disagreement([FIRST, OTHER]) == ""


def test_another_recipe_or_other_data_is_named_with_its_host_and_run() -> None:
    found = disagreement([FIRST, OTHER, replace(OTHER, fingerprint="bb")])
    assert found.startswith("rank 2 on node-1 (run 20261127-1201-x) has other fields or other data than rank 0")


def test_another_checkpoint_is_named_by_its_step() -> None:
    found = disagreement([FIRST, replace(OTHER, resume=None)])
    assert "rank 1 on node-1 (run 20261127-1201-x) begins at step 0" in found
    assert "rank 0 on node-0 (run 20261127-1200-x) from the checkpoint of step 20" in found
    missing = "node-1 needs the folder /runs/b/stages/b/1/checkpoints/step-20, a copy of /runs/a/stages/b/1/checkpoints"
    assert missing in found
    other = disagreement([replace(FIRST, resume=None, place="/runs/a"), OTHER])
    assert other.endswith("at step 0: launch both again")
