"""The private root folder of a confined program: the interpreter, its library, three device files, an empty folder."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from pathlib import Path

from engines.judging.sandbox import kernel
from engines.judging.sandbox.limits import Limits

WORK = Path("/tmp")  # noqa: S108 - inside the private root
_BASE = Path("/tmp")  # noqa: S108 - covered in a private mount namespace; nothing is written to the host's folder
_DEVICES = (Path("/dev/null"), Path("/dev/zero"), Path("/dev/urandom"))
_LOADERS = (Path("/lib64/ld-linux-x86-64.so.2"), Path("/lib/ld-linux-aarch64.so.1"))
_LINKS = (Path("/lib"), Path("/lib32"), Path("/lib64"), Path("/bin"), Path("/usr/lib64"))
_LIBRARY_CACHE = Path("/etc/ld.so.cache")
_SYSTEM_LIBRARIES = re.compile(r"(/usr)?/lib(64|32)?(/[a-z0-9_]+-linux-[a-z]+)?")
_LIBRARY_FILE = re.compile(r"\.so(\.[0-9.]+)?$")
_HIDDEN = ("site-packages", "dist-packages", "test", "ensurepip", "idlelib")
_ROOT_BYTES, _ROOT_INODES = "4m", "4k"


def sources() -> list[Path]:
    """Host paths that a program sees, read-only, at the same places: interpreter, standard library, shared libraries.

    Packages that were installed are not among them.
    """
    library = _library()
    found = [Path(sys.executable).resolve(), library]
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
        mapped = {Path(line.split(None, 5)[5].strip()) for line in maps if "/" in line}
    for path in sorted(mapped):
        if not _LIBRARY_FILE.search(path.name) or path.is_relative_to(library):
            continue
        found.append(path.parent if _SYSTEM_LIBRARIES.fullmatch(str(path.parent)) else path)
    if _LIBRARY_CACHE.exists():
        found.append(_LIBRARY_CACHE)
    return list(dict.fromkeys(found))


def enter_private_root(limits: Limits) -> None:
    """Replace the root of this process, which has its own mount namespace, by a private one.

    Raises:
        OSError: a mount is refused; its text says which.
    """
    library = _library()
    os.umask(0o022)  # the program's user goes through the folders made here, whatever mask the operator has
    opened = {path: os.open(path, os.O_PATH | os.O_CLOEXEC) for path in [*sources(), *_DEVICES]}
    links = {path: path.readlink() for path in _LINKS if path.is_symlink() and path not in opened}
    # Where the file of the loader lies, and not the link to its folder.
    links |= {path.parent.resolve() / path.name: path.resolve() for path in _LOADERS if path.exists()}
    folders = {path for path in opened if path.is_dir()}
    hidden = [library / name for name in _HIDDEN if (library / name).is_dir()]
    kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    _tmpfs(_BASE, f"size={_ROOT_BYTES},nr_inodes={_ROOT_INODES},mode=755")
    for path, handle in opened.items():
        _bind(path, handle, path in folders)
    for path, target in links.items():
        place = _inside(path)
        if not os.path.lexists(place):
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(target)
    for path in hidden:
        _tmpfs(_inside(path), "size=4k,nr_inodes=2,mode=555")
        kernel.read_only(str(_inside(path)))
    _own_folders(limits)
    kernel.read_only(str(_BASE), recursive=False)
    kernel.change_root(str(_BASE))
    os.chdir(WORK)


def _library() -> Path:
    return Path(os.__file__).resolve().parent


def _inside(path: Path) -> Path:
    """Where a host's path is in the private root, before that is the root."""
    return _BASE / path.relative_to("/")


def _tmpfs(place: Path, options: str) -> None:
    kernel.mount("tmpfs", str(place), "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, options)


def _bind(path: Path, handle: int, is_folder: bool) -> None:
    place = _inside(path)
    place.parent.mkdir(parents=True, exist_ok=True)
    if is_folder:
        place.mkdir(exist_ok=True)
    else:
        place.touch()
    kernel.mount(f"/proc/self/fd/{handle}", str(place), None, kernel.MS_BIND | kernel.MS_REC)
    kernel.read_only(str(place), devices=path in _DEVICES)
    os.close(handle)


def _own_folders(limits: Limits) -> None:
    _inside(WORK).mkdir()
    _tmpfs(_inside(WORK), f"size={limits.disk_bytes},nr_inodes={limits.inodes},mode=1777")
    place = _inside(Path("/proc"))
    place.mkdir()
    # Where parts of the host's /proc are covered, as in most containers, the kernel allows no other one: then there is
    # none.
    with contextlib.suppress(OSError):
        flags = kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC
        kernel.mount("proc", str(place), "proc", flags, "hidepid=2,subset=pid")
        kernel.read_only(str(place))
