"""A load that quantizes leaves no memory of its copies in the process."""

import json
import os
import platform
import subprocess
import sys

import pytest

from cockpit.supervision.freed_memory import keep_freed_memory
from engines.machine.returned_memory import GLIBC_LARGEST, threshold_of

LOAD = """
import ctypes, json, sys
from engines.machine.returned_memory import copies_returned
library = ctypes.CDLL(None)
library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
library.free.argtypes = [ctypes.c_void_p]

def taken(size):
    where = library.malloc(size)
    ctypes.memset(where, 1, size)
    return where

def resident():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) >> 10

before = resident()
with copies_returned(quantizes=sys.argv[1] == "True"):
    copies = []
    for _ in range(64):
        copies.append(taken(2 << 20))
        taken(1 << 19)  # what is kept
    for copy in copies:
        library.free(copy)
loaded = resident() - before
largest = taken(100 << 20)
library.free(largest)
print(json.dumps({"loaded_mib": loaded, "kept_mib": resident() - before - loaded}))
"""


def measured(*, quantizes: bool) -> dict[str, int]:
    environment = {**os.environ, **keep_freed_memory({})}
    command = [sys.executable, "-c", LOAD, str(quantizes)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return json.loads(done.stdout)


GLIBC = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library keeps memory in other ways")


@GLIBC
def test_copies_of_a_load_go_back_to_the_system_and_later_buffers_are_kept() -> None:
    assert measured(quantizes=True)["loaded_mib"] < 50  # 64 halves of a MiB
    assert measured(quantizes=True)["kept_mib"] >= 99


@GLIBC
def test_without_it_the_copies_stay_as_gaps() -> None:
    assert measured(quantizes=False)["loaded_mib"] > 90


def test_the_threshold_after_a_load_is_the_one_that_the_process_began_with() -> None:
    assert threshold_of(keep_freed_memory({})["GLIBC_TUNABLES"]) == 512 << 20
    assert threshold_of("glibc.malloc.mmap_threshold=0x100000:glibc.malloc.hugetlb=1") == 1 << 20
    assert threshold_of("glibc.malloc.hugetlb=1") == threshold_of("") == GLIBC_LARGEST
    assert threshold_of("glibc.malloc.mmap_threshold=99999999999") < 1 << 31  # what mallopt takes
