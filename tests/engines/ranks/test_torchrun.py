"""The arguments of torchrun for a launch."""

from __future__ import annotations

from pathlib import Path

from engines.ranks.torchrun import torchrun_arguments
from engines.stage_file import StageFile
from recipes.stages.launch.fields import Launch


def test_the_processes_of_one_host_meet_without_a_look_up_of_its_name() -> None:
    stage = {"name": "s", "kind": "fake"}
    given = StageFile(run_root="/runs/r", tag="fake", stage=stage, attempt=1)
    found = torchrun_arguments(given, Path("/runs/r/stage.json"), Launch(processes=2, strategy="ddp"))
    assert {"--standalone", "--local-addr=127.0.0.1"} <= set(found)
