"""A chat's process gives way: its own priority and that of its session, and it goes first when memory is exhausted."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from engines.chatting.manners import NICE, OOM_SCORE, half_of_the_free

ASK = """
import os, sys
from pathlib import Path
from engines.chatting.manners import give_way
give_way()
group = Path("/proc/self/autogroup")
named = group.read_text().split() if group.exists() else []  # it is empty in the session that the machine began with
print(os.getpriority(os.PRIO_PROCESS, 0), named[-1] if named else "none",
      Path("/proc/self/oom_score_adj").read_text().strip())
"""


def test_a_session_of_its_own_has_the_low_priority_as_a_group() -> None:
    done = subprocess.run(
        [sys.executable, "-c", ASK], capture_output=True, text=True, start_new_session=True, check=True
    )
    nice, group, score = done.stdout.split()
    assert (nice, score) == (str(NICE), str(OOM_SCORE))
    assert group in {str(NICE), "none"}


def test_the_group_of_a_session_that_it_does_not_lead_is_left_alone() -> None:
    group = Path("/proc/self/autogroup")
    before = group.read_text() if group.exists() else ""
    subprocess.run([sys.executable, "-c", ASK], capture_output=True, check=True)
    assert (group.read_text() if group.exists() else "") == before


def test_half_of_the_free_cores_are_taken_and_one_at_least() -> None:
    assert half_of_the_free(64, 0.2) == 31
    assert half_of_the_free(64, 32.0) == 16
    assert half_of_the_free(2, 0.0) == 1
    assert half_of_the_free(2, 2.5) == 1
    assert half_of_the_free(1, 0.0) == 1
