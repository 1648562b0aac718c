"""What the engine says about its cards. Torch's answers are stood in for: no test here runs on CUDA."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from engines.artifacts.manifest import manifest_sha256, read_manifest
from engines.context import ResumePoint
from engines.events.attempts import DevicesUsed, UsedDevice
from engines.events.steps import Step
from engines.events.writers import Warned
from engines.exhausted_memory import exhausted_memory
from engines.training import devices as reporting
from engines.training.devices import bound_shared_memory, place, report_devices, require_shared_memory
from tests.engines.training.attempts import context, of_kind, run_stage
from tests.engines.training.tiny import PRETRAIN

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


@pytest.fixture
def trained(tmp_path: Path, tokens: Path) -> Path:
    """The last checkpoint of a training in two steps."""
    ctx = context(tmp_path, {**PRETRAIN, "max_steps": 2}, {"data": tokens})
    run_stage(ctx)
    return ctx.checkpoints / "step-2"


def warnings_of_resume(tmp_path: Path, tokens: Path, checkpoint: Path) -> list[str]:
    point = ResumePoint(1, 2, checkpoint, manifest_sha256(checkpoint))
    ctx = context(tmp_path, {**PRETRAIN, "max_steps": 2}, {"data": tokens}, attempt=2, resume=point)
    run_stage(ctx)
    return [warning.message for warning in of_kind(ctx, Warned, 2)]


def change(checkpoint: Path, **values: object) -> None:
    file = checkpoint / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def test_a_checkpoint_says_where_it_was_trained(trained: Path) -> None:
    manifest = read_manifest(trained)
    assert (manifest["host"], manifest["cards"]) == (socket.gethostname(), place()["cards"])


def test_a_resume_at_the_same_place_says_nothing(tmp_path: Path, tokens: Path, trained: Path) -> None:
    assert warnings_of_resume(tmp_path, tokens, trained) == []


def test_a_resume_elsewhere_names_both_hosts_and_both_cards(tmp_path: Path, tokens: Path, trained: Path) -> None:
    change(trained, host="spark-07", cards=[{"name": "NVIDIA H100", "id": "GPU-7"}])
    (warning,) = warnings_of_resume(tmp_path, tokens, trained)
    assert warning.startswith("resumed from step 2 elsewhere: ")
    assert f"host was spark-07, now {socket.gethostname()}" in warning
    assert "GPU was NVIDIA H100 (GPU-7), now none" in warning


def test_another_kind_of_card_may_compute_other_results(
    tmp_path: Path, tokens: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(trained, cards=[{"name": "NVIDIA A100", "id": "GPU-7"}])
    monkeypatch.setattr(reporting, "used_devices", lambda _: [UsedDevice(number=0, name="NVIDIA H100", uuid="GPU-1")])
    first, second = warnings_of_resume(tmp_path, tokens, trained)
    assert "GPU was NVIDIA A100 (GPU-7), now NVIDIA H100 (GPU-1)" in first
    assert "may differ from an uninterrupted run: the kind of GPU was NVIDIA A100, now NVIDIA H100" in second


def test_a_checkpoint_of_an_older_version_says_no_place_and_none_is_claimed(
    tmp_path: Path, tokens: Path, trained: Path
) -> None:
    change(trained, host=None, cards=None)
    assert warnings_of_resume(tmp_path, tokens, trained) == []


GB = 1 << 30


@pytest.fixture
def unified(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A GPU that uses the machine's memory; the shares of it that torch may take."""
    shares: list[float] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _number: SimpleNamespace(is_integrated=1))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 8 * GB)  # weights that are there already
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", shares.append)
    return shares


def test_torch_leaves_a_reserve_of_memory_that_the_gpu_shares(unified: list[float]) -> None:
    said = bound_shared_memory(lambda: (128 * GB, 92 * GB))
    assert unified == [pytest.approx((100 - 0.04 * 128) / 128)]
    assert said.startswith("the GPU uses the machine's memory: the engine takes at most 94.9 GiB")
    bound_shared_memory(lambda: (32 * GB, 0))
    assert unified[1] == pytest.approx(6 / 32)
    assert bound_shared_memory(lambda: None) == ""
    assert len(unified) == 2


def test_a_step_is_refused_as_exhausted_memory_when_others_take_the_reserve(unified: list[float]) -> None:
    require_shared_memory(lambda: (128 * GB, 3 * GB))
    with pytest.raises(MemoryError, match=r"2 GiB of 128 GiB are available") as caught:
        require_shared_memory(lambda: (128 * GB, 2 * GB))
    assert exhausted_memory(caught.value)
    assert unified == []


def test_other_machines_are_not_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert bound_shared_memory(lambda: (8 * GB, GB)) == ""
    require_shared_memory(lambda: (8 * GB, 0))
