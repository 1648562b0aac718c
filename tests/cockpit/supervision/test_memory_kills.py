"""A SIGKILL is called exhausted memory only where the kernel's own counters say so."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from cockpit.supervision.memory_kills import MemoryKills, judge, memory_end
from engines.words import MemoryEnd


class Kernel:
    """A /proc and a /sys/fs/cgroup in which one process, 7, lives."""

    def __init__(self, root: Path, cgroup: str, *counters: str) -> None:
        self.proc, self.cgroups = root / "proc", root / "cgroup"
        (self.proc / "7").mkdir(parents=True)
        (self.proc / "7" / "cgroup").write_text(cgroup)
        self.files = [self.cgroups / name for name in counters]
        for file in self.files:
            file.parent.mkdir(parents=True, exist_ok=True)
        self.count(0, 0)

    def count(self, group: int, machine: int) -> None:
        for file in self.files:
            file.write_text(f"low 0\noom 9\noom_kill {group}\noom_group_kill 0\n")
        (self.proc / "vmstat").write_text(f"nr_free_pages 1\noom_kill {machine}\n")

    def read(self) -> MemoryKills:
        return MemoryKills.read(7, self.proc, self.cgroups)

    def judge(self, before: MemoryKills) -> tuple[MemoryEnd, str]:
        return judge(before, before.again(self.proc))


@pytest.mark.parametrize(
    ("cgroup", "counter"),
    [
        ("0::/user.slice/run\n", "user.slice/run/memory.events"),
        ("0::/\n", "memory.events"),
        ("0::/../outside\n", "memory.events"),
        ("5:devices:/x\n4:memory:/jobs/a\n0::/\n", "memory/jobs/a/memory.oom_control"),
        ("4:memory:/elsewhere\n", "memory/memory.oom_control"),
    ],
)
def test_a_kill_in_the_process_s_own_group_is_a_proof_with_its_evidence(
    tmp_path: Path, cgroup: str, counter: str
) -> None:
    kernel = Kernel(tmp_path, cgroup, counter)
    before = kernel.read()
    kernel.count(1, 1)
    found, evidence = kernel.judge(before)
    assert found is MemoryEnd.PROVEN
    assert f"oom_kill 0 → 1 in {kernel.files[0]}" in evidence


def test_a_kill_elsewhere_on_the_machine_is_probable_and_said_as_such(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path, "0::/a\n", "a/memory.events")
    before = kernel.read()
    kernel.count(0, 1)
    found, evidence = kernel.judge(before)
    assert (found, evidence.split(":")[0]) == (MemoryEnd.PROBABLE, "probably for memory")


def test_kills_of_an_outer_group_prove_nothing(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path, "0::/a\n", "a/memory.events", "memory.events")
    before = kernel.read()
    kernel.files[1].write_text("oom_kill 3\n")
    assert kernel.judge(before) == (MemoryEnd.UNKNOWN, "")


@pytest.mark.parametrize("text", ["", "oom_kill x\n", "oom_kill -1\n", "oom_kill " + "9" * 30 + "\n"])
def test_a_counter_that_cannot_be_read_proves_nothing(tmp_path: Path, text: str) -> None:
    kernel = Kernel(tmp_path, "0::/a\n", "a/memory.events")
    kernel.files[0].write_text(text)
    (kernel.proc / "vmstat").unlink()
    before = kernel.read()
    assert before == MemoryKills()
    kernel.files[0].write_text("oom_kill 1\n")
    assert kernel.judge(before) == (MemoryEnd.UNKNOWN, "")


@pytest.mark.parametrize(
    ("status", "killed_by_us", "expected"),
    [
        (-signal.SIGKILL, False, MemoryEnd.PROVEN),
        (-signal.SIGKILL, True, MemoryEnd.UNKNOWN),
        (-signal.SIGSEGV, False, MemoryEnd.UNKNOWN),
        (1, False, MemoryEnd.UNKNOWN),
        (None, False, MemoryEnd.PROBABLE),
    ],
)
def test_only_a_sigkill_from_elsewhere_may_be_the_kernel_s(
    tmp_path: Path, status: int | None, killed_by_us: bool, expected: MemoryEnd
) -> None:
    kernel = Kernel(tmp_path, "0::/a\n", "a/memory.events")
    before = kernel.read()
    kernel.count(1, 0)
    found, _ = memory_end(before, status, tmp_path / "console.log", killed_by_us=killed_by_us)
    assert found is expected


def test_an_abort_of_the_c_library_for_memory_is_proven_by_the_console(tmp_path: Path) -> None:
    console = tmp_path / "console.log"
    console.write_text("x" * 100_000 + "\nterminate called after throwing an instance of 'std::bad_alloc'\n")
    assert memory_end(MemoryKills(), -signal.SIGABRT, console, killed_by_us=False)[0] is MemoryEnd.PROVEN
    console.write_text("Fatal Python error: Aborted\n")
    assert memory_end(MemoryKills(), -signal.SIGABRT, console, killed_by_us=False)[0] is MemoryEnd.UNKNOWN


def test_counts_that_an_engine_s_file_kept_prove_a_kill_to_a_later_supervisor(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path, "0::/a\n", "a/memory.events")
    kept = json.loads(json.dumps(dict(kernel.read().groups)))
    kernel.count(1, 5)
    before = MemoryKills.of_groups(kept, kernel.cgroups)
    assert kernel.judge(before)[0] is MemoryEnd.PROVEN
    found, evidence = memory_end(before, None, tmp_path / "console.log", killed_by_us=False)
    assert found is MemoryEnd.PROBABLE, "its exit status is unknown"
    assert "oom_kill 0 → 1" in evidence
    assert kernel.judge(MemoryKills.of_groups(None, kernel.cgroups))[0] is MemoryEnd.UNKNOWN


@pytest.mark.parametrize("file", ["/etc/passwd", "{}/../memory.events", "{}/a/other"])
def test_a_file_that_names_other_files_than_counts_is_not_believed(tmp_path: Path, file: str) -> None:
    assert MemoryKills.of_groups({file.format(tmp_path): 0}, tmp_path) == MemoryKills()


def test_an_abort_for_memory_while_no_supervisor_ran_is_probable(tmp_path: Path) -> None:
    console = tmp_path / "console.log"
    console.write_text("terminate called after throwing an instance of 'std::bad_alloc'\n")
    found, evidence = memory_end(MemoryKills(), None, console, killed_by_us=False)
    assert (found, "std::bad_alloc" in evidence) == (MemoryEnd.PROBABLE, True)
