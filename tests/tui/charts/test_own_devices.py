"""Four cards, and the run's work on the last: figures are those of the card that the engine named."""

from __future__ import annotations

import msgspec

from cockpit.headless.machine_line import MachineNow, words
from cockpit.headless.report import report_lines
from cockpit.runs.state import RunState, fold
from cockpit.tui.charts.chart import ChartData
from cockpit.tui.charts.panels import ViewOptions, panels
from cockpit.tui.widgets.status import machine_parts
from engines.events.attempts import DevicesUsed, UsedDevice
from engines.events.kinds import AnyEvent
from engines.events.machine import Device, MachineSampled
from tests.tui import journals
from tests.tui.journals import GIB, Journal

STAGE = "atlas"


def cards(*used_gib: int) -> list[Device]:
    return [
        Device(
            id=number, name="NVIDIA H100", uuid=f"GPU-{number}", pci=f"0:{number}:0", util_percent=20.0 + number,
            memory_used_bytes=used * GIB, memory_total_bytes=80 * GIB,
        )
        for number, used in enumerate(used_gib)
    ]  # fmt: skip


def with_cards(devices: list[Device]) -> list[AnyEvent]:
    """A training on a machine with these cards, which says nothing about them."""
    return [
        msgspec.structs.replace(event, devices=devices) if isinstance(event, MachineSampled) else event
        for event in journals.live(40).events
    ]


def four_cards(*uuids: str, named: bool = True) -> RunState:
    """A training on these of four cards."""
    journal = Journal()
    for event in with_cards(cards(1, 2, 30, 40)):
        journal.say(event.w, event, after_s=1.0)
    if named:
        used = [UsedDevice(number=n, name="NVIDIA H100", uuid=uuid) for n, uuid in enumerate(uuids)]
        journal.say("e1.atlas", DevicesUsed(stage=STAGE, attempt=1, devices=used, visible="3"))
    return fold(journal.events)


def charts(state: RunState) -> dict[str, ChartData]:
    stage = state.stage(STAGE)
    assert stage is not None
    made = [panel.make() for panel in panels(state, stage, ViewOptions(log=set()), {})]
    return {chart.name: chart for chart in made}


def status(state: RunState) -> str:
    return "  ".join(part.text for part in machine_parts(state, state.stage(STAGE)))


def test_charts_show_the_memory_and_load_of_the_engine_s_card() -> None:
    found = charts(four_cards("GPU-3"))
    assert found["gpu3 memory"].summary.startswith("40/80 GiB")
    assert found["gpu3 load"].summary.startswith("23%")
    assert not any(name.startswith(("gpu0", "gpu ")) for name in found)


def test_the_status_line_shows_every_card_of_the_engine_and_no_other() -> None:
    assert "gpu3" in status(four_cards("GPU-3"))
    assert "gpu0" not in status(four_cards("GPU-3"))
    both = status(four_cards("GPU-3", "GPU-2"))
    assert "gpu2" in both
    assert "gpu3" in both
    assert "gpu1" not in both


def test_of_several_cards_the_charts_show_the_fullest_and_say_so() -> None:
    assert "gpu3 memory (fullest of 2)" in charts(four_cards("GPU-2", "GPU-3"))


def test_where_no_engine_said_which_the_first_card_is_shown_with_its_doubt() -> None:
    state = four_cards(named=False)
    assert "gpu0 memory (own gpu unknown)" in charts(state)
    assert "(own gpu unknown)" in status(state)


def test_a_card_that_the_driver_lost_is_not_replaced_by_another_one() -> None:
    state = four_cards("GPU-9")
    assert not any(name.startswith("gpu") for name in charts(state))
    assert "gpu" not in status(state)


def test_with_one_card_there_is_no_doubt() -> None:
    found = charts(fold(journals.live(40).events))
    assert "gpu memory" in found
    assert "gpu load" in found


def test_home_shows_the_card_of_the_run() -> None:
    state = four_cards("GPU-3")
    sample = state.machine()
    assert sample is not None
    machine = MachineNow("spark-01", 8, 5.0, GIB, 2 * GIB, None, ("H100",) * 4)
    line = "  ".join(words(machine, sample, state.own_devices()))
    assert "gpu3" in line
    assert "gpu0" not in line


def test_the_report_names_the_card_and_what_the_engine_could_see() -> None:
    report = "\n".join(report_lines(four_cards("GPU-3")))
    assert "atlas: attempt 1 computed on NVIDIA H100 (GPU-3), of CUDA_VISIBLE_DEVICES=3" in report


def test_the_log_says_where_an_attempt_computes() -> None:
    lines = [line.text for line in four_cards("GPU-3").log()]
    assert "atlas attempt 1 computes on NVIDIA H100 (GPU-3), of CUDA_VISIBLE_DEVICES=3" in lines


def test_a_reading_without_identities_is_an_older_version_s_and_leaves_a_doubt() -> None:
    bare = [msgspec.structs.replace(card, uuid="", pci="") for card in cards(1, 2)]
    assert "gpu0 memory (own gpu unknown)" in charts(fold(with_cards(bare)))
