"""The kernel's interface for confinement by ctypes: namespaces, mounts, capabilities, the filter of system calls."""

from __future__ import annotations

import ctypes
import errno
import os
import struct

from engines.judging.sandbox.syscalls import ALLOWED, CHECKED, MACHINES, SETTING_UP, numbers

NEW_NAMESPACES = 0x10000000 | 0x00020000 | 0x20000000 | 0x40000000 | 0x08000000 | 0x04000000 | 0x02000000
"""CLONE_NEWUSER, NEWNS, NEWPID, NEWNET, NEWIPC, NEWUTS and NEWCGROUP (sched.h)."""
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 8, 4096, 16384, 1 << 18
MNT_DETACH = 2
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_CAPBSET_DROP, PR_SET_SECUREBITS = 1, 4, 24, 28
PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL = 22, 38, 47, 4
PR_SET_NAME, PR_GET_NAME = 15, 16
_ATTR_RDONLY, _ATTR_NOSUID, _ATTR_NODEV = 1, 2, 4
_AT_EMPTY_PATH, _AT_RECURSIVE = 0x1000, 0x8000
_LOCKED_SECUREBITS = 0x01 | 0x02 | 0x04 | 0x08 | 0x20 | 0x40 | 0x80
"""NOROOT, NO_SETUID_FIXUP and NO_CAP_AMBIENT_RAISE with their locks, and the lock of KEEP_CAPS."""
_CAPABILITY_VERSION_3 = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def unshare(flags: int) -> None:
    """Put this process into new namespaces."""
    _check("unshare", _libc.unshare(ctypes.c_int(flags)))


def mount(source: str, target: str, kind: str | None, flags: int, data: str = "") -> None:
    """mount(2)."""
    texts = [None if text is None else text.encode() for text in (source, target, kind, data)]
    result = _libc.mount(texts[0], texts[1], texts[2], ctypes.c_ulong(flags), texts[3])
    _check(f"mount of {kind or source} on {target}", result)


def read_only(path: str, *, devices: bool = False, recursive: bool = True) -> None:
    """Make a mount read-only, without setuid programs, and without device files unless `devices`; flags that it has
    already stay."""
    attributes = struct.pack("<4Q", _ATTR_NOSUID | (0 if devices else _ATTR_RDONLY | _ATTR_NODEV), 0, 0, 0)
    flags = _AT_RECURSIVE if recursive else 0
    _call("mount_setattr", -100, path.encode(), flags, attributes, len(attributes))


def change_root(folder: str) -> None:
    """Make a mounted folder the root, and leave the old one behind."""
    os.chdir(folder)
    _call("pivot_root", b".", b".")
    _check("umount of the old root", _libc.umount2(b".", MNT_DETACH))
    os.chdir("/")


def prctl(what: str, option: int, value: int = 0) -> None:
    """prctl(2) with one argument."""
    zero = ctypes.c_ulong(0)
    _check(what, _libc.prctl(ctypes.c_int(option), ctypes.c_ulong(value), zero, zero, zero))


def become(user: int) -> None:
    """Become a user without any capability, for good: neither a program's file nor the user root gives one again."""
    prctl("clearing ambient capabilities", PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    for capability in range(64):
        try:
            prctl("dropping a capability", PR_CAPBSET_DROP, capability)
        except OSError as error:
            if error.errno != errno.EINVAL:  # the kernel has fewer
                raise
            break
    prctl("locking secure bits", PR_SET_SECUREBITS, _LOCKED_SECUREBITS)
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    _call("capset", struct.pack("<Ii", _CAPABILITY_VERSION_3, 0), struct.pack("<6I", *[0] * 6))


def filter_system_calls() -> None:
    """Let this process and its descendants make only the calls of `syscalls.ALLOWED`, and some of `CHECKED`."""
    code = b"".join(struct.pack("<HBBI", *one) for one in _program())
    kept = ctypes.create_string_buffer(code)
    head = struct.pack("@HP", len(code) // 8, ctypes.addressof(kept))
    prctl("no new privileges", PR_SET_NO_NEW_PRIVS, 1)
    argument = ctypes.create_string_buffer(head)
    zero = ctypes.c_ulong(0)
    result = _libc.prctl(PR_SET_SECCOMP, ctypes.c_ulong(2), ctypes.byref(argument), zero, zero)
    _check("the filter of system calls (seccomp)", result)


_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL = 0x7FFF0000, 0x80000000
_AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32 = 0x40000000
_ARGUMENTS = {
    "ioctl": (1, (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)),  # TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIO(N)CLEX
    "prctl": (0, (PR_SET_NAME, PR_GET_NAME)),
    "socketpair": (0, (1,)),  # AF_UNIX
}
"""Which argument of a call is compared, and its allowed values."""

_Instruction = tuple[int, int, int, int]


def _program() -> list[_Instruction]:
    """The filter as instructions of classic BPF: code, jump if true, jump if false, value."""
    machine = os.uname().machine
    allowed, checked = numbers(ALLOWED), numbers(CHECKED)
    lines: list[_Instruction] = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, _AUDIT[machine]), (_RETURN, 0, 0, _KILL)]
    lines.append((_LOAD, 0, 0, 0))
    if machine == MACHINES[0]:
        lines += [(_AT_LEAST, 0, 1, _X32), _fails(errno.ENOSYS)]
    for number in allowed.values():
        lines += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ALLOW)]
    # The C library then calls clone, whose flags a filter can read.
    lines += [(_EQUAL, 0, 1, checked["clone3"]), _fails(errno.ENOSYS)]
    lines += [(_EQUAL, 0, 4, checked["clone"]), (_LOAD, 0, 0, 16), (_ANY_BIT, 0, 1, NEW_NAMESPACES)]
    lines += [_fails(errno.EPERM), (_RETURN, 0, 0, _ALLOW)]
    for name, (argument, values) in _ARGUMENTS.items():
        tests = [line for value in values for line in ((_EQUAL, 0, 1, value), (_RETURN, 0, 0, _ALLOW))]
        lines += [(_EQUAL, 0, len(tests) + 2, checked[name]), (_LOAD, 0, 0, 16 + 8 * argument), *tests]
        lines += [_fails(errno.EPERM)]
    return [*lines, _fails(errno.EPERM)]


def _fails(number: int) -> _Instruction:
    return (_RETURN, 0, 0, 0x00050000 | number)


def _call(name: str, *arguments: int | bytes) -> None:
    number = numbers(SETTING_UP)[name]
    given = [ctypes.c_long(one) if isinstance(one, int) else ctypes.c_char_p(one) for one in arguments]
    _check(name, _libc.syscall(ctypes.c_long(number), *given))


def _check(what: str, result: int) -> None:
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
