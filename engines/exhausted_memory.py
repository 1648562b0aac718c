"""Whether an error says that memory ran out: on a GPU, on the host, or in a library that reports it as text.

Libraries have no common class for it. torch raises `OutOfMemoryError` only for its own GPU allocator; CUDA, cuBLAS, the
CPU allocator and the C++ library give a `RuntimeError` with their own words.
"""

from __future__ import annotations

import errno
import os
import re
import resource

from recipes import quantities

_NAMES = frozenset({"OutOfMemoryError"})
_WORDS = (
    ("CUDA error: out of memory", "CUDA: out of memory"),
    ("CUDA out of memory", "CUDA: out of memory"),
    ("HIP out of memory", "HIP: out of memory"),
    ("MPS backend out of memory", "MPS: out of memory"),
    ("CUBLAS_STATUS_ALLOC_FAILED", "cuBLAS: CUBLAS_STATUS_ALLOC_FAILED"),
    ("CUDNN_STATUS_ALLOC_FAILED", "cuDNN: CUDNN_STATUS_ALLOC_FAILED"),
    ("DefaultCPUAllocator: can't allocate memory", "the host's memory"),
    ("DefaultCPUAllocator: not enough memory", "the host's memory"),
    ("std::bad_alloc", "the host's memory (std::bad_alloc)"),
    ("Cannot allocate memory", "the host's memory"),
)
_OF_A_LIMIT = ("could not create a primitive", "could not create a memory object", "can't start new thread")
"""Words for memory that ran out and for something else: oneDNN's for a product that it cannot compute, and Python's for
too many threads (a new one needs memory for its stack)."""
_TRIED = re.compile(r"[Tt]ried to allocate (\d+(?:\.\d+)? ?[A-Za-z]+)")
_SHARED = "</torch_"
"""How torch names a file in /dev/shm in its errors."""
_MAX_LINKS = 8
_MAX_CHARACTERS = 100_000


class EvaluationMemoryError(MemoryError):
    """Memory ran out in an evaluation of several processes, and every one of them raises this at the same place.

    Args:
        which: the processes, and the memory of each.
    """

    def __init__(self, which: str) -> None:
        super().__init__("memory ran out in an evaluation")
        self.which = which


def exhausted_memory(error: BaseException) -> str:
    """Which memory ran out, and what was requested, by an error or by one that it was raised from; else empty."""
    link: BaseException | None = error
    for _ in range(_MAX_LINKS):
        if link is None:
            break
        found = _of(link)
        if found:
            return found
        link = link.__cause__
    return ""


def is_full_shared_memory(error: BaseException) -> bool:
    """Whether torch could not put a tensor for another process into /dev/shm, by an error or one that it has."""
    link: BaseException | None = error
    for _ in range(_MAX_LINKS):
        if link is None:
            break
        if _SHARED in (text := str(link)[:_MAX_CHARACTERS]) and os.strerror(errno.ENOSPC) in text:
            return True
        link = link.__cause__
    return False


def in_output(text: str) -> str:
    """Which memory ran out, by the last words of a process that the C++ library aborted; else empty."""
    return "the host's memory (std::bad_alloc)" if "std::bad_alloc" in text else ""


def _of(error: BaseException) -> str:
    if isinstance(error, EvaluationMemoryError):
        return error.which
    text = str(error)[:_MAX_CHARACTERS]
    is_named = any(cls.__name__ in _NAMES for cls in type(error).__mro__)
    if isinstance(error, RuntimeError) or is_named:
        for words, which in _WORDS:
            if words in text:
                return which + _requested(text)
        if any(words in text for words in _OF_A_LIMIT):
            return _limited()
    if isinstance(error, MemoryError):
        return "the host's memory" + _requested(text)
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return "the host's memory"
    return f"the device's memory{_requested(text)}" if is_named else ""


def _requested(text: str) -> str:
    found = _TRIED.search(text)
    return f", {found[1]} were requested" if found else ""


def _limited() -> str:
    """The limit on this process's memory, if there is one: only then do a library's ambiguous words mean it."""
    limits = [resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA)]
    finite = [limit for limit in limits if limit != resource.RLIM_INFINITY]
    return f"this process's memory, limited to {quantities.size(min(finite))}" if finite else ""
