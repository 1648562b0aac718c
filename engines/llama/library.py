"""Find llama.cpp's native library, and open it inside a worker process.

A native abort ends its process, and two llama.cpp builds in one process clash. So the stage itself never opens the
library, and each worker opens exactly one.
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
    """The native library is missing, incompatible, failed or crashed; the text is for operators."""


@dataclass(frozen=True)
class Library:
    """A llama.cpp library, as parity.json records it."""

    name: str
    version: str
    path: str
    sha256: str

    def record(self) -> dict[str, str]:
        """The fields as plain values; the hash identifies the library, the path is informative."""
        return asdict(self)


def _package_folder(name: str) -> Path | None:
    """The folder of an installed package, found without an import."""
    spec = importlib.util.find_spec(name)
    return Path(spec.origin).parent if spec is not None and spec.origin else None


@functools.cache
def find_library() -> Library:
    """The library of the installed wheel.

    Raises:
        NativeError: the wheel is not installed.
    """
    folder = _package_folder(PACKAGE)
    found = sorted(folder.glob("*.so")) if folder else []
    if not found:
        raise NativeError(
            f"llama.cpp's library was not found; install the {PACKAGE} package (the export extra) in this environment"
        )
    return Library(PACKAGE, importlib.metadata.version(PACKAGE), str(found[0]), file_sha256(found[0]))


def named_library(path: Path) -> Library:
    """A kernel library that the operator named; its version is unknown until it is open."""
    return Library("ggml", "unknown", str(path), file_sha256(path))


def find_kernels(llama_cpp: str | None) -> Path | None:
    """The kernel library in the operator's build of llama.cpp, or None.

    Args:
        llama_cpp: the build's folder, its checkout, or a program in it; None for COCKPIT_LLAMA_CPP.
    """
    place = llama_cpp or os.environ.get(LLAMA_CPP_VARIABLE)
    if not place:
        return None
    given = Path(place).expanduser()
    folder = given.parent if given.is_file() else given
    found = [folder / part / KERNELS_FILE for part in KERNELS_PLACES]
    return next((path.absolute() for path in found if path.is_file()), None)


def openmp_candidates() -> list[str]:
    """Possible places of the OpenMP runtime, best first: the system's, then the copies in other wheels."""
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
    """Load libgomp with global symbols, so that the library finds it by name or by symbol.

    Returns:
        The name or path that was loaded.

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
        "libgomp.so.1 was not found, and llama.cpp's library needs it; install the system package libgomp1, or torch"
    )


def open_library(library: Library) -> ctypes.CDLL:
    """Open the library in this process and check that it exports the required symbols.

    Raises:
        NativeError: the library cannot be opened, or a symbol is missing.
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
    """Open a library for its kernels only.

    Raises:
        NativeError: the library cannot be opened, or a symbol is missing.
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
    """The version that a kernel library reports; "unknown" for older ones, which report none."""
    if not hasattr(native, "ggml_version"):
        return "unknown"
    native.ggml_version.restype = ctypes.c_char_p
    version: bytes | None = native.ggml_version()
    return version.decode(errors="replace") if version else "unknown"


def die_with_parent() -> None:
    """Let the kernel kill this worker when its parent process dies (on Linux; elsewhere end-of-file on stdin ends
    it)."""
    parent = os.getppid()
    try:
        ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)  # PR_SET_PDEATHSIG, SIGKILL
    except (OSError, AttributeError):
        return
    if os.getppid() != parent:
        os._exit(1)
