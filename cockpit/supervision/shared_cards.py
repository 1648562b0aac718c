"""Engines that share a GPU: which card an engine is started on, and what a launch says about others on it.

No driver library is loaded here. The card is what CUDA_VISIBLE_DEVICES makes the engine's first one; two engines whose
choices are spelled differently may still meet, which the driver's list of processes shows once both compute.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from cockpit.supervision.shared_cores import environments_of_others
from engines.run_dir.paths import RunDir

CARD_ENV = "COCKPIT_CARD"
"""An engine's card, in the environment that it is started with, for the supervisors of other runs."""
DRIVER = Path("/proc/driver/nvidia")


def first_card(environment: Mapping[str, str]) -> str:
    """The card that CUDA makes the first: a UUID, or a number with the order in which it counts; "" for none."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    first = "0" if visible is None else visible.partition(",")[0].strip()
    if not first.isdecimal():
        return first if first.startswith(("GPU-", "MIG-")) else ""
    order = environment.get("CUDA_DEVICE_ORDER") or "FASTEST_FIRST"
    return f"{order}:{first}"


def engines_on_card(run: RunDir, card: str) -> int:
    """The number of engines of this user's other runs that were started on the card; 0 without NVIDIA's driver."""
    if not card or not DRIVER.is_dir():
        return 0
    wanted = (os.fsencode(CARD_ENV), os.fsencode(card))
    return sum(1 for environment in environments_of_others(run) if environment.get(wanted[0]) == wanted[1])


def card_words(others: int, card: str) -> str:
    """What a launch says about engines on the same card; "" without one."""
    if not others:
        return ""
    runs = "1 other engine was" if others == 1 else f"{others} other engines were"
    return (
        f"{runs} started on the same GPU ({card.partition(':')[2] or card}): they share its memory and its time; the "
        "field devices of a stage chooses another"
    )
