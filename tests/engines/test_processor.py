"""The cores, quotas and memory nodes that a process may use, read from a copy of the kernel's files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from engines.processor import (
    available_memory_bytes,
    cpp_compiler,
    memory_bytes,
    memory_limit_bytes,
    node_for,
    nodes,
    usable_cores,
)


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


def topology(threads_of_core: dict[int, str]) -> dict[str, str]:
    return {f"sys/devices/system/cpu/cpu{n}/topology/core_cpus_list": text for n, text in threads_of_core.items()}


FOUR_CORES = topology({n: f"{n % 4},{n % 4 + 4}" for n in range(8)})
TWO_NODES = {
    "sys/devices/system/node/node0/cpulist": "0-1,4-5",
    "sys/devices/system/node/node1/cpulist": "2-3,6-7",
    "sys/devices/system/node/possible": "0-1",
}


def allow(monkeypatch: pytest.MonkeyPatch, cpus: set[int]) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: cpus)


@pytest.mark.parametrize(
    ("allowed", "files", "cores"),
    [
        (set(range(8)), {}, 4),
        ({0, 4}, {}, 1),
        ({0, 1, 6}, {}, 3),
        (set(range(8)), {"proc/self/cgroup": "0::/box", "sys/fs/cgroup/box/cpu.max": "250000 100000"}, 2),
        (set(range(8)), {"proc/self/cgroup": "0::/a/b", "sys/fs/cgroup/a/cpu.max": "50000 100000"}, 1),
        (set(range(8)), {"proc/self/cgroup": "0::/a", "sys/fs/cgroup/a/cpu.max": "max 100000"}, 4),
        (
            set(range(8)),
            {
                "proc/self/cgroup": "3:cpuset:/\n1:cpu,cpuacct:/x",
                "sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_quota_us": "300000",
                "sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_period_us": "100000",
            },
            3,
        ),
        (
            set(range(8)),
            {
                "proc/self/cgroup": "1:cpu:/x",
                "sys/fs/cgroup/cpu/x/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu/x/cpu.cfs_period_us": "100000",
            },
            4,
        ),
    ],
)
def test_cores_are_those_of_the_affinity_within_the_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allowed: set[int], files: dict[str, str], cores: int
) -> None:
    allow(monkeypatch, allowed)
    assert usable_cores(write(tmp_path, FOUR_CORES | files)) == cores


def test_a_kernel_that_says_nothing_counts_each_processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    allow(monkeypatch, {0, 1, 2})
    assert usable_cores(tmp_path) == 3
    assert nodes(tmp_path) == {}
    assert node_for(1, tmp_path) is None


def test_threads_that_fit_into_one_node_get_one_and_others_have_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    allow(monkeypatch, set(range(8)))
    root = write(tmp_path, FOUR_CORES | TWO_NODES)
    assert nodes(root) == {0: {0, 1, 4, 5}, 1: {2, 3, 6, 7}}
    assert [node_for(threads, root) for threads in (1, 2, 3)] == [0, 0, None]
    assert node_for(2, root, bound=[{0, 1}, set(range(8))]) == 1, "an engine has the first node for itself"


def test_an_operator_s_own_choice_of_one_node_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    allow(monkeypatch, {2, 3})
    root = write(tmp_path, FOUR_CORES | TWO_NODES)
    assert nodes(root) == {1: {2, 3}}
    assert node_for(1, root) is None


def test_lists_of_processors_are_bounded_and_nonsense_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    allow(monkeypatch, set(range(8)))
    root = write(
        tmp_path,
        {"sys/devices/system/node/node0/cpulist": "0-99999999999,x,3-", "sys/devices/system/node/nodeX/cpulist": "0"},
    )
    assert nodes(root) == {0: set(range(8))}


def test_the_compiler_of_the_environment_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert cpp_compiler() == ""
    monkeypatch.setenv("CXX", "sh")
    assert Path(cpp_compiler()).name == "sh"


def test_the_machine_s_memory_is_read_from_the_kernel(tmp_path: Path) -> None:
    file = tmp_path / "meminfo"
    file.write_text("MemTotal:  1000 kB\nMemFree: 5 kB\nMemAvailable:  400 kB\nHugePages_Total: 0\n")
    assert memory_bytes(file) == (1_024_000, 409_600)
    file.write_text("MemTotal: 1000 kB\n")
    assert memory_bytes(file) is None
    assert memory_bytes(tmp_path / "absent") is None
    here = memory_bytes()
    assert here is None or 0 < here[1] <= here[0]


def test_available_memory_is_the_least_that_the_machine_and_its_control_groups_leave(tmp_path: Path) -> None:
    machine = {"proc/meminfo": "MemTotal: 1000 kB\nMemAvailable: 900 kB", "proc/self/cgroup": "0::/a/b"}
    assert available_memory_bytes(write(tmp_path / "free", machine)) == 900 * 1024
    limited = {
        **machine,
        "sys/fs/cgroup/a/memory.max": "800000",
        "sys/fs/cgroup/a/memory.current": "700000",
        "sys/fs/cgroup/a/memory.stat": "anon 1\ninactive_file 150000\nactive_file 50000",
        "sys/fs/cgroup/a/b/memory.max": "max",
        "sys/fs/cgroup/a/b/memory.current": "600000",
    }
    assert available_memory_bytes(write(tmp_path / "limited", limited)) == 300_000, "cached files can make room"
    over = {**limited, "sys/fs/cgroup/a/memory.current": "2000000"}
    assert available_memory_bytes(write(tmp_path / "over", over)) == 1
    assert available_memory_bytes(tmp_path / "absent") is None


def test_limits_of_memory_are_those_of_the_process_s_own_groups_of_both_versions(tmp_path: Path) -> None:
    """A job of a scheduler, or a scope of systemd, limits a group below the root."""
    assert memory_limit_bytes(write(tmp_path / "none", {"proc/self/cgroup": "0::/a"})) is None
    second = {
        "proc/self/cgroup": "0::/a/b", "sys/fs/cgroup/a/memory.max": "5000", "sys/fs/cgroup/a/b/memory.max": "max",
    }  # fmt: skip
    assert memory_limit_bytes(write(tmp_path / "second", second)) == 5000
    first = {
        "proc/self/cgroup": "4:memory:/job", "proc/meminfo": "MemTotal: 1000 kB\nMemAvailable: 900 kB",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
        "sys/fs/cgroup/memory/job/memory.limit_in_bytes": "600000",
        "sys/fs/cgroup/memory/job/memory.usage_in_bytes": "500000",
        "sys/fs/cgroup/memory/job/memory.stat": "inactive_file 1\ntotal_inactive_file 150000\ntotal_active_file 50000",
    }  # fmt: skip
    assert memory_limit_bytes(write(tmp_path / "first", first)) == 600_000
    assert available_memory_bytes(tmp_path / "first") == 300_000
