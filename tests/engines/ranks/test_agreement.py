"""What the processes of all hosts must have in common."""

from __future__ import annotations

from dataclasses import replace

from engines.ranks.agreement import Beginning, disagreement

FIRST = Beginning("node-0", "20261127-1200-x", "aa", (20, "ff"))
OTHER = replace(FIRST, host="node-1", run="20261127-1201-x")


def test_other_hosts_runs_are_no_difference() -> None:
    assert disagreement([FIRST, OTHER]) == ""


def test_another_recipe_or_other_data_is_named_with_its_host_and_run() -> None:
    found = disagreement([FIRST, OTHER, replace(OTHER, fingerprint="bb")])
    assert found.startswith("rank 2 on node-1 (run 20261127-1201-x) has other fields or other data than rank 0")


def test_another_checkpoint_is_named_by_its_step() -> None:
    found = disagreement([FIRST, replace(OTHER, resume=None)])
    assert "rank 1 on node-1 (run 20261127-1201-x) begins at step 0" in found
    assert "rank 0 on node-0 (run 20261127-1200-x) from the checkpoint of step 20" in found
