"""Finding llama.cpp's native library, and opening it: only ever inside a worker process.

A native abort ends the process it happens in, and two llama.cpp builds in one process clash; so the stage itself never
opens the library, and each worker opens exactly one.
"""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import functools
import importlib.metadata
import importlib.util
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from engines.files import file_sha256

PACKAGE = "xllamacpp"
LLAMA_CPP_VARIABLE = "COCKPIT_LLAMA_CPP"
KERNELS_FILE = "libggml-base.so"
KERNELS_PLACES = ("", "build/bin", "bin", "lib", "../lib")
KERNEL_SYMBOLS = ("ggml_quantize_chunk", "ggml_quantize_init")
REQUIRED = (
    "ggml_quantize_chunk",
    "llama_decode",
    "llama_get_logits_ith",
    "llama_tokenize",
    "llama_model_load_from_file",
)


class NativeError(Exception):
    """The native library is missing, unfit, failed or crashed; the text says which, for operators."""


@dataclass(frozen=True)
class Library:
    """A llama.cpp library as found: what parity.json records about it."""

    name: str
    version: str
    path: str
    sha256: str

    def record(self) -> dict[str, str]:
        """Plain values; the path only tells where it was, the hash what it is."""
        return asdict(self)


def _package_folder(name: str) -> Path | None:
    """Where a package is installed, without importing it."""
    spec = importlib.util.find_spec(name)
    return Path(spec.origin).parent if spec is not None and spec.origin else None


@functools.cache
def find_library() -> Library:
    """The library of the installed wheel.

    Raises:
        NativeError: it is not installed.
    """
    folder = _package_folder(PACKAGE)
    found = sorted(folder.glob("*.so")) if folder else []
    if not found:
        raise NativeError(
            f"llama.cpp's library was not found: install the {PACKAGE} package (the export extra) in this environment"
        )
    return Library(PACKAGE, importlib.metadata.version(PACKAGE), str(found[0]), file_sha256(found[0]))


def named_library(path: Path) -> Library:
    """A library of kernels that the operator named: its version is asked of it once it is open."""
    return Library("ggml", "not told", str(path), file_sha256(path))


def find_kernels(llama_cpp: str | None) -> Path | None:
    """The library of kernels in the operator's own build of llama.cpp, if there is one.

    Args:
        llama_cpp: the build's folder, its checkout, or a program in it; COCKPIT_LLAMA_CPP when None.
    """
    place = llama_cpp or os.environ.get(LLAMA_CPP_VARIABLE)
    if not place:
        return None
    given = Path(place).expanduser()
    folder = given.parent if given.is_file() else given
    found = [folder / part / KERNELS_FILE for part in KERNELS_PLACES]
    return next((path.absolute() for path in found if path.is_file()), None)


def openmp_candidates() -> list[str]:
    """Where the OpenMP runtime may be, best first: the system's, then the copies that other wheels bring."""
    names = ["libgomp.so.1"]
    for package, patterns in (("torch", ("lib/libgomp*.so*",)), ("sentencepiece", ()), ("sklearn", ())):
        folder = _package_folder(package)
        if folder is None:
            continue
        beside = folder.parent / f"{package}.libs"
        files = [path for pattern in patterns for path in sorted(folder.glob(pattern))]
        names += [str(path) for path in [*files, *sorted(beside.glob("libgomp*.so*"))]]
    return names


def load_openmp(candidates: list[str] | None = None) -> str:
    """Load libgomp with its symbols visible, so that the library finds it by its name or by its symbols.

    Returns:
        What was loaded.

    Raises:
        NativeError: no copy could be loaded.
    """
    tried = openmp_candidates() if candidates is None else candidates
    for name in tried:
        try:
            ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
        except OSError:
            continue
        return name
    raise NativeError(
        "libgomp.so.1 was not found, which llama.cpp's library needs: install the system's libgomp1 package, or torch"
    )


def open_library(library: Library) -> ctypes.CDLL:
    """Open the library in this process and check that it exports what is needed.

    Raises:
        NativeError: it cannot be opened, or a symbol is missing.
    """
    openmp = load_openmp()
    try:
        native = ctypes.CDLL(library.path)
    except OSError as error:
        raise NativeError(f"{library.path} cannot be opened (OpenMP from {openmp}): {error}") from error
    missing = [name for name in REQUIRED if not hasattr(native, name)]
    if missing:
        raise NativeError(f"{library.name} {library.version} does not export {', '.join(missing)}")
    return native


def open_kernels(library: Library) -> ctypes.CDLL:
    """Open a library of which only the kernels are used.

    Raises:
        NativeError: it cannot be opened, or a symbol is missing.
    """
    with contextlib.suppress(NativeError):
        load_openmp()
    try:
        native = ctypes.CDLL(library.path)
    except OSError as error:
        raise NativeError(f"{library.path} cannot be opened: {error}") from error
    missing = [name for name in KERNEL_SYMBOLS if not hasattr(native, name)]
    if missing:
        raise NativeError(f"{library.path} does not export {', '.join(missing)}")
    return native


def library_version(native: ctypes.CDLL) -> str:
    """What a library of kernels calls itself; older ones do not tell."""
    if not hasattr(native, "ggml_version"):
        return "not told"
    native.ggml_version.restype = ctypes.c_char_p
    version: bytes | None = native.ggml_version()
    return version.decode(errors="replace") if version else "not told"


def die_with_parent() -> None:
    """Have the kernel end this worker when the process that started it dies (Linux; elsewhere end-of-file on stdin
    does)."""
    parent = os.getppid()
    try:
        ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)  # PR_SET_PDEATHSIG, SIGKILL
    except (OSError, AttributeError):
        return
    if os.getppid() != parent:
        os._exit(1)
