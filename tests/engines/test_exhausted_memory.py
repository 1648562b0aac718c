"""Exhausted memory is recognised whatever library reports it, and nothing else is called so."""

from __future__ import annotations

import errno
import resource
import subprocess
import sys

import pytest

from engines.exhausted_memory import EvaluationMemoryError, exhausted_memory, in_output, is_full_shared_memory
from recipes.problems import OperatorError

GPU = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB of which 1.25 GiB is free."
)
OutOfMemoryError = type("OutOfMemoryError", (RuntimeError,), {})


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OutOfMemoryError(GPU), "CUDA: out of memory, 2.00 GiB were requested"),
        (OutOfMemoryError("new words"), "the device's memory"),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"), "CUDA: out of memory"),
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
            "cuBLAS: CUBLAS_STATUS_ALLOC_FAILED",
        ),
        (
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp:137] DefaultCPUAllocator: can't allocate memory: you tried to"
            ),
            "the host's memory",
        ),
        (RuntimeError("std::bad_alloc"), "the host's memory (std::bad_alloc)"),
        (RuntimeError("unable to mmap 8 bytes from file <x>: Cannot allocate memory (12)"), "the host's memory"),
        (MemoryError(), "the host's memory"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "the host's memory"),
    ],
)
def test_memory_that_ran_out_is_named(error: BaseException, says: str) -> None:
    assert exhausted_memory(error) == says


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: device-side assert triggered"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        ValueError("CUDA out of memory"),
        OSError(errno.ENOSPC, "No space left on device"),
        KeyboardInterrupt(),
    ],
)
def test_another_error_is_not_called_exhausted_memory(error: BaseException) -> None:
    assert exhausted_memory(error) == ""


def test_an_operators_error_that_was_raised_from_it_is_exhausted_memory_too() -> None:
    error = OperatorError("cannot load a model", "hint")
    error.__cause__ = MemoryError()
    assert exhausted_memory(error) == "the host's memory"


@pytest.mark.torch
def test_the_words_of_torch_itself_under_a_limit_are_recognised() -> None:
    import torch

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (1 << 46, hard))  # larger than what any machine has in use
    try:
        with pytest.raises(RuntimeError) as caught:
            torch.empty(1 << 47, dtype=torch.uint8)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert exhausted_memory(caught.value) == f"the host's memory, {1 << 47} bytes were requested"


def test_an_abort_of_the_c_library_is_recognised_by_its_last_words() -> None:
    assert in_output("terminate called after throwing an instance of 'std::bad_alloc'\n  what():  std::bad_alloc\n")
    assert not in_output("Fatal Python error: Aborted")


def test_ambiguous_words_mean_memory_only_in_a_process_with_a_limit() -> None:
    assert not exhausted_memory(RuntimeError("could not create a primitive"))
    script = (
        "import resource\n"
        "from engines.exhausted_memory import exhausted_memory\n"
        "hard = resource.getrlimit(resource.RLIMIT_AS)[1]\n"
        "resource.setrlimit(resource.RLIMIT_AS, (8 * 2**30, hard))\n"
        "print(exhausted_memory(RuntimeError('could not create a primitive')))\n"
    )
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert told.strip() == "this process's memory, limited to 8 GiB"


def test_a_thread_for_whose_stack_a_limit_leaves_no_memory_is_exhausted_memory() -> None:
    assert not exhausted_memory(RuntimeError("can't start new thread"))
    script = (
        "import resource, threading\n"
        "from engines.exhausted_memory import exhausted_memory\n"
        "threading.stack_size(2**30)\n"
        "resource.setrlimit(resource.RLIMIT_DATA, (2**29, resource.getrlimit(resource.RLIMIT_DATA)[1]))\n"
        "try:\n"
        "    threading.Thread(target=print).start()\n"
        "except RuntimeError as error:\n"
        "    print(exhausted_memory(error))\n"
    )
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert told.strip() == "this process's memory, limited to 512 MiB"


def test_a_full_shared_memory_is_known_by_torchs_words_in_the_error_of_a_worker() -> None:
    words = "unable to allocate shared memory(shm) for file </torch_17163_2925977536_5>: No space left on device (28)"
    worker = RuntimeError(f"Caught RuntimeError in DataLoader worker process 0.\n{words}")
    assert is_full_shared_memory(worker)
    assert not is_full_shared_memory(OSError(28, "No space left on device"))
    assert not is_full_shared_memory(RuntimeError("unable to open </torch_1>: Permission denied (13)"))


def test_memory_that_ran_out_in_one_of_several_processes_is_named_with_it() -> None:
    assert exhausted_memory(EvaluationMemoryError("rank 1 of 2: the host's memory")) == "rank 1 of 2: the host's memory"
