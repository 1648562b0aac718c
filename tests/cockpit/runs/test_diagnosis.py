"""What the curves of real tiny trainings say: each trouble is named, and a healthy training never is.

The curves were recorded by `bench/record_curves.py`.
"""

from __future__ import annotations

import json
import math
import random
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from cockpit.headless.report import report_lines
from cockpit.runs.diagnosis import MIN_EVALUATIONS, Curves, Trouble, diagnose
from cockpit.runs.health import Clock, health
from cockpit.runs.state import RunState
from engines.events.attempts import AttemptStarted
from engines.events.kinds import AnyEvent
from engines.events.results import Evaluated
from engines.events.runs import RunStarted, StageStarted
from engines.events.steps import Step
from engines.events.writers import WriterOpened
from engines.words import RunStatus, StartReason, WriterRole

RECORDED = Path(__file__).with_name("recorded_curves.json")


@cache
def recorded(kind: str) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = json.loads(RECORDED.read_text())[kind]
    return found


def curves(training: dict[str, Any], steps: int | None = None) -> Curves:
    """The first steps of a recorded training; all by default."""
    size = len(training["losses"]) if steps is None else steps
    columns = {name: [float(value) for value in training[name][:size]] for name in ("losses", "rates", "norms")}
    found = [(float(step), float(loss)) for step, loss in training["evaluations"] if step <= size]
    return Curves(list(range(1, size + 1)), **columns, evaluations=found, total_steps=training["total_steps"])


@pytest.mark.parametrize("name", recorded("troubled"))
def test_a_training_that_was_made_to_fail_is_named_with_its_evidence_and_a_remedy(name: str) -> None:
    found = diagnose(curves(recorded("troubled")[name]))
    assert [str(one.trouble) for one in found] == [name.partition(",")[0]]
    assert any(character.isdigit() for character in found[0].evidence)
    assert found[0].remedies


def test_twenty_healthy_trainings_have_no_finding_at_any_step() -> None:
    trainings = recorded("healthy")
    assert len(trainings) >= 20
    found = {
        (name, size, one.short)
        for name, training in trainings.items()
        for size in {*range(1, len(training["losses"]), 13), len(training["losses"])}
        for one in diagnose(curves(training, size))
    }
    assert found == set()


def _noisy(losses: list[float], noise: float, *, held_out: bool = False) -> Curves:
    """A training at a constant rate whose steps have this standard deviation, in nats."""
    draw, steps = random.Random(1), len(losses)
    found = [(float(at), losses[at - 1]) for at in range(50, steps + 1, 50)] if held_out else []
    measured = [loss + draw.gauss(0, noise) for loss in losses]
    return Curves(range(1, steps + 1), measured, [1e-3] * steps, [1.0] * steps, evaluations=found, total_steps=1500)


@pytest.mark.parametrize("noise", [0.03, 0.1, 0.3])
def test_a_slow_fall_that_noise_hides_is_no_plateau(noise: float) -> None:
    falling = [3 + 5 * (step + 5) ** -0.3 for step in range(1000)]
    for size in range(100, 1001, 50):
        assert diagnose(_noisy(falling[:size], noise)) == [], size


@pytest.mark.parametrize(("noise", "held_out"), [(0.01, False), (0.05, False), (0.3, True)])
def test_a_plateau_is_found_where_the_noise_or_the_held_out_loss_proves_it(noise: float, *, held_out: bool) -> None:
    flat = [4 + 2 * math.exp(-step / 40) for step in range(1200)]
    assert [one.trouble for one in diagnose(_noisy(flat, noise, held_out=held_out))] == [Trouble.PLATEAU]


@pytest.mark.parametrize("name", recorded("troubled"))
def test_few_steps_prove_nothing_but_a_rise_far_above_the_start(name: str) -> None:
    training = recorded("troubled")[name]
    found = {one.trouble for size in range(50) for one in diagnose(curves(training, size))}
    assert found <= ({Trouble.EXPLODING} if name == "learning rate too high, at once" else set())


@pytest.mark.parametrize("steps", [8, 12])
def test_a_short_training_that_blows_up_is_named(steps: int) -> None:
    losses = [2.1, 2.4, 1.8, 2.9, *[4.0 + 1.5 * at for at in range(steps - 4)]]
    [found] = diagnose(Curves(range(1, steps + 1), losses, [1e-2] * steps, [1.0] * steps, total_steps=steps))
    assert found.trouble is Trouble.EXPLODING
    assert f"in {steps} steps" in found.evidence
    assert found.remedies[0].field == "learning_rate"
    assert diagnose(Curves(range(1, 8), losses[:7], [1e-2] * 7, [1.0] * 7)) == [], "seven steps prove nothing"
    calm = [loss if at < steps - 1 else 2.2 for at, loss in enumerate(losses)]
    assert diagnose(Curves(range(1, steps + 1), calm, [1e-2] * steps, [1.0] * steps)) == [], "it came back"


def test_three_evaluations_prove_no_overfitting() -> None:
    whole = curves(recorded("troubled")["overfitting"])
    few = [whole.evaluations[0], whole.evaluations[-2], whole.evaluations[-1]]
    assert len(few) < MIN_EVALUATIONS
    one = Curves(whole.steps, whole.losses, whole.rates, whole.norms, evaluations=few, total_steps=whole.total_steps)
    assert Trouble.OVERFITTING not in {found.trouble for found in diagnose(one)}


@pytest.mark.parametrize(("wait_s", "expected"), [(0.9, [Trouble.INPUT_BOUND]), (0.1, []), (0.0, [])])
def test_waiting_for_data_is_a_finding_when_it_takes_a_quarter_of_the_time(
    wait_s: float, expected: list[Trouble]
) -> None:
    found = diagnose(Curves(step_s=[1.5] * 40, wait_s=[wait_s] * 40))
    assert [one.trouble for one in found] == expected
    assert diagnose(Curves(step_s=[0.001] * 40, wait_s=[0.0009] * 40)) == [], "tiny steps wait for nothing that matters"


def _journal(training: dict[str, Any]) -> list[AnyEvent]:
    start: dict[str, Any] = {"stage": "base", "kind": "pretrain", "attempt": 1, "launch": 1}
    opened: dict[str, Any] = {"host": "h", "boot_id": "b", "pid": 1, "start_time": 1}
    events: list[Any] = [
        ("s", WriterOpened(role=WriterRole.SUPERVISOR, **opened)),
        ("s", RunStarted(
            run="r", recipe="r", reason=StartReason.LAUNCH, stages=["base"], kinds=["pretrain"], launch=1
        )),
        ("s", StageStarted(**start, steps=training["total_steps"])),
        ("e", WriterOpened(role=WriterRole.ENGINE, stage="base", attempt=1, **opened)),
        ("e", AttemptStarted(**start)),
    ]  # fmt: skip
    held_out = dict(training["evaluations"])
    for at, (loss, rate, norm) in enumerate(zip(*(training[n] for n in ("losses", "rates", "norms")), strict=True), 1):
        events.append(("e", Step(
            stage="base", attempt=1, step=at, epoch=0.0, loss=float(loss), learning_rate=float(rate),
            grad_norm=float(norm), tokens=at, loss_tokens=at, step_s=1.0, data_wait_s=0.9,
        )))  # fmt: skip
        if at in held_out:
            events.append(("e", Evaluated(
                stage="base", attempt=1, step=at, loss=held_out[at], perplexity=1.0, tokens=1, protocol="p"
            )))  # fmt: skip
    numbers: dict[str, int] = {}
    made = []
    for writer, event in events:
        numbers[writer] = numbers.get(writer, -1) + 1
        fields = {name: getattr(event, name) for name in event.__struct_fields__}
        made.append(type(event)(**{**fields, "v": 1, "w": writer, "seq": numbers[writer], "t": 1.0, "m": 1.0}))
    return made


def test_the_health_line_has_the_finding_and_the_report_its_remedies_too() -> None:
    state = RunState()
    state.apply_all(_journal(recorded("troubled")["overfitting"]))
    said = health(state, RunStatus.RUNNING, Clock())
    assert [one.partition(":")[0] for one in said.concerns] == ["overfitting", "input-bound"]
    report = "\n".join(report_lines(state))
    assert "base: overfitting: the held-out loss rose from" in report
    assert "early_stopping_patience=2" in report
    assert "dataloader_num_workers=4" in report
