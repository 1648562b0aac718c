"""Two runs on one GPU. The processes are real; the driver's folder and the GPU are not there."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cockpit.provenance.mark import RUN_ENV
from cockpit.supervision import shared_cards
from cockpit.supervision.engine_process import engine_environment, what_it_shares
from cockpit.supervision.shared_cards import CARD_ENV, card_words, engines_on_card, first_card
from engines.run_dir.paths import RunDir
from recipes.stages.finetune import FinetuneStage
from tests.runs.harness import wait_for


def stage(*devices: str) -> FinetuneStage:
    fields = {"name": "tuned", "kind": "finetune", "model": "m", "data": "d", "devices": list(devices)}
    return FinetuneStage.model_validate(fields)


@pytest.mark.parametrize(
    ("environment", "card"),
    [
        ({}, "FASTEST_FIRST:0"),
        ({"CUDA_VISIBLE_DEVICES": "3,1"}, "FASTEST_FIRST:3"),
        ({"CUDA_VISIBLE_DEVICES": "3", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, "PCI_BUS_ID:3"),
        ({"CUDA_VISIBLE_DEVICES": "GPU-5ba1,0", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, "GPU-5ba1"),
        ({"CUDA_VISIBLE_DEVICES": ""}, ""),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, ""),
    ],
)
def test_the_card_of_an_engine_is_the_first_that_cuda_shows_it(environment: dict[str, str], card: str) -> None:
    assert first_card(environment) == card


@pytest.fixture
def other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An engine of another run on card 3, on a machine that has NVIDIA's driver."""
    driver, code = tmp_path / "nvidia", tmp_path / "code" / "engines"
    driver.mkdir()
    code.mkdir(parents=True)
    (code / "__init__.py").touch()
    (code / "run.py").write_text("import sys\nsys.stdin.read()\n")
    monkeypatch.setattr(shared_cards, "DRIVER", driver)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    environment = {
        **engine_environment(RunDir(tmp_path / "other"), stage("3")),
        "PYTHONPATH": str(code.parent),
        RUN_ENV: str(tmp_path / "other"),
    }
    child = subprocess.Popen(
        [sys.executable, "-m", "engines.run"], stdin=subprocess.PIPE, env=environment, cwd=tmp_path
    )
    run = RunDir(tmp_path / "mine")
    wait_for(lambda: engines_on_card(run, environment[CARD_ENV]) == 1, "the other engine")
    yield
    child.communicate()


@pytest.mark.usefixtures("other")
def test_a_stage_on_the_card_of_another_run_s_engine_says_so_at_its_start(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "mine")
    (said,) = [words for words in what_it_shares(run, stage("3")) if "GPU" in words]
    assert said.startswith("1 other engine was started on the same GPU (3)")
    assert "the field devices" in said


@pytest.mark.usefixtures("other")
def test_nothing_is_said_on_another_card_in_the_same_run_and_without_a_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def said(root: str, card: str) -> list[str]:
        return [words for words in what_it_shares(RunDir(tmp_path / root), stage(card)) if "GPU" in words]

    assert said("mine", "2") == []
    assert said("other", "3") == []
    monkeypatch.setattr(shared_cards, "DRIVER", tmp_path / "no such folder")
    assert said("mine", "3") == []


def test_several_engines_are_counted() -> None:
    assert card_words(0, "PCI_BUS_ID:3") == ""
    assert card_words(2, "GPU-5ba1").startswith("2 other engines were started on the same GPU (GPU-5ba1)")


def test_a_number_of_the_fastest_first_is_not_a_number_of_nvidia_smi() -> None:
    assert first_card({"CUDA_VISIBLE_DEVICES": "0"}) != first_card(
        {"CUDA_VISIBLE_DEVICES": "0", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    )
