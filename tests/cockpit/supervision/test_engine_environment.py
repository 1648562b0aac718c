"""Which GPUs and how many threads an engine may use. No test here runs on CUDA: what CUDA does with the variables is
CUDA's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cockpit.supervision.engine_process import engine_environment
from engines.run_dir.paths import RunDir
from recipes.stages.evaluate import EvaluateStage
from recipes.stages.finetune import FinetuneStage
from tests.recipes.recipe_texts import found as problems_in


def environment(tmp_path: Path, **fields: Any) -> dict[str, str]:
    stage = FinetuneStage.model_validate({"name": "tuned", "kind": "finetune", "model": "m", "data": "d", **fields})
    return engine_environment(RunDir(tmp_path / "run"), stage)


@pytest.mark.parametrize("given", [["2", "GPU-5ba1"], [2, "GPU-5ba1"]])
def test_the_engine_sees_the_stage_s_devices_by_the_numbers_of_nvidia_smi(
    given: list[str | int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "FASTEST_FIRST")
    found = environment(tmp_path, devices=given)
    assert (found["CUDA_VISIBLE_DEVICES"], found["CUDA_DEVICE_ORDER"]) == ("2,GPU-5ba1", "PCI_BUS_ID")


def test_without_devices_the_shell_s_choice_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    found = environment(tmp_path)
    assert found["CUDA_VISIBLE_DEVICES"] == "7"
    assert "CUDA_DEVICE_ORDER" not in found


def test_a_stages_threads_have_priority_over_the_shells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In stages of all kinds: torch takes its number of threads from this variable."""
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    judge = {"name": "judge", "kind": "evaluate", "model": "m", "data": "d"}
    for given, found in (({}, "5"), ({"threads": 3}, "3")):
        assert environment(tmp_path, **given)["OMP_NUM_THREADS"] == found
        of_judge = EvaluateStage.model_validate({**judge, **given})
        assert engine_environment(RunDir(tmp_path / "run"), of_judge)["OMP_NUM_THREADS"] == found


@pytest.mark.parametrize("device", ["0,1", "-1", "gpu0", "", "NoDevFiles"])
def test_what_is_no_device_is_refused_with_its_line_and_what_is_allowed(device: str) -> None:
    head = 'schema = 1\nname = "x"\n[[stage]]\nname = "base"\nkind = "evaluate"\nmodel = "org/name"\ndata = "/"\n'
    (problem,) = problems_in(f'{head}devices = ["{device}"]\n').values()
    assert (problem.line, problem.key) == (8, "base.devices")
    assert "a list of numbers as nvidia-smi shows them" in str(problem)
