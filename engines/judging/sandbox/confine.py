"""Takes a process into namespaces of its own, under a user without rights, with limits; the host helps from outside."""

from __future__ import annotations

import os
import resource
import signal

from engines.judging.sandbox import kernel
from engines.judging.sandbox.limits import Limits
from engines.judging.sandbox.root import enter_private_root

INSIDE_USER = 1000
_OUTSIDE_USER = 0x7FFE0000
"""The first of the host's user numbers for programs when Cockpit runs as root; they own nothing."""


def outside_user() -> int:
    """The host's user that a confined program is: the caller, or for root one that owns nothing.

    It is never root: the kernel does not count root's processes.
    """
    return os.getuid() or _OUTSIDE_USER + os.getpid() % 0x10000


def write_maps(pid: int) -> None:
    """Give a process in a new user namespace its users; called from outside of it.

    Raises:
        OSError: the kernel refuses.
    """
    user, group = outside_user(), os.getgid() if os.getuid() else outside_user()
    # Root can open what only root can see while the private root is made, such as an interpreter in its own folder.
    first = "" if os.getuid() else "0 0 1\n"
    if os.getuid():
        _write(f"/proc/{pid}/setgroups", "deny")
    _write(f"/proc/{pid}/uid_map", f"{first}{INSIDE_USER} {user} 1\n")
    _write(f"/proc/{pid}/gid_map", f"{first}{INSIDE_USER} {group} 1\n")


def confine(limits: Limits) -> None:
    """Confine this process, which is the first one of new namespaces and has its users already.

    Raises:
        OSError: the kernel refuses a step; the text names it.
    """
    os.setsid()
    _no_more_user_namespaces()
    enter_private_root(limits)
    if os.getuid() == 0:
        os.setgroups([])
    kernel.become(INSIDE_USER)
    kernel.prctl("ending with the parent", kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    kernel.prctl("hiding memory from other processes", kernel.PR_SET_DUMPABLE, 0)
    _limit(limits)
    os.umask(0o077)
    for number in range(1, signal.NSIG):
        if number not in (signal.SIGKILL, signal.SIGSTOP, 32, 33):
            signal.signal(number, signal.SIG_DFL)  # the first process of a namespace ignores these from inside
    kernel.filter_system_calls()


def _limit(limits: Limits) -> None:
    for what, most in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_CPU, limits.cpu_s),
        (resource.RLIMIT_AS, limits.memory_bytes),
        (resource.RLIMIT_FSIZE, limits.disk_bytes),
        (resource.RLIMIT_NOFILE, limits.files),
        (resource.RLIMIT_NPROC, limits.processes),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
        (resource.RLIMIT_SIGPENDING, 256),
        (resource.RLIMIT_NICE, 0),
        (resource.RLIMIT_RTPRIO, 0),
    ):
        soft = min(most, resource.getrlimit(what)[1]) if resource.getrlimit(what)[1] >= 0 else most
        hard = soft + 1 if what == resource.RLIMIT_CPU and soft == most else soft
        resource.setrlimit(what, (soft, hard))


def _no_more_user_namespaces() -> None:
    """Also without the filter of system calls, no user namespace can be made inside this one."""
    try:
        _write("/proc/sys/user/max_user_namespaces", "0")
    except OSError:
        return  # read-only in a container; the filter refuses it as well


def _write(path: str, text: str) -> None:
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(handle, text.encode())
        finally:
            os.close(handle)
    except OSError as error:
        raise OSError(error.errno, f"{path}: {os.strerror(error.errno or 0)}") from error
