"""What the engine says about its cards. Torch's answers are stood in for: no test here runs on CUDA."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from engines.events import DevicesUsed, Step, UsedDevice
from engines.training import devices as reporting
from engines.training.devices import report_devices
from tests.engines.training.attempts import context, of_kind, run_stage
from tests.engines.training.test_fields import PRETRAIN

pytestmark = pytest.mark.torch


def test_the_cpu_is_no_card(tmp_path: Path) -> None:
    ctx = context(tmp_path, PRETRAIN, {})
    report_devices(ctx, [torch.device("cpu")])
    assert of_kind(ctx, DevicesUsed) == []


def test_each_card_is_journaled_once_with_its_uuid_and_what_the_engine_may_see(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,2")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda number: SimpleNamespace(name="NVIDIA H100", uuid=f"u{number}")
    )
    ctx = context(tmp_path, PRETRAIN, {})
    report_devices(ctx, [torch.device("cuda"), torch.device("cuda", 0), torch.device("cuda", 1), torch.device("cpu")])
    (said,) = of_kind(ctx, DevicesUsed)
    assert said.visible == "3,2"
    assert [(card.number, card.uuid) for card in said.devices] == [(0, "GPU-u0"), (1, "GPU-u1")]


def test_a_training_says_before_its_first_step_where_it_computes(
    tmp_path: Path, tokens: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def of_the_cpu(devices: Iterable[torch.device]) -> list[UsedDevice]:
        return [UsedDevice(number=0, name=" ".join({device.type for device in devices}))]

    monkeypatch.setattr(reporting, "used_devices", of_the_cpu)
    ctx = context(tmp_path, {**PRETRAIN, "max_steps": 1}, {"data": tokens})
    run_stage(ctx)
    (said,), steps = of_kind(ctx, DevicesUsed), of_kind(ctx, Step)
    assert said.devices[0].name == "cpu", "it is asked for the devices of the trainer and of the weights"
    assert said.seq < steps[0].seq
