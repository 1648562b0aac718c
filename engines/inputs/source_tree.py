"""Walk a folder of sources: which files are read, which are left out, and why. The content of the tree is not
trusted."""

from __future__ import annotations

import codecs
import io
import os
import sysconfig
import tokenize
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePath, PurePosixPath

from engines.files import open_regular
from recipes.problems import OperatorError, printable

STANDARD_LIBRARY = "python-stdlib"
PROSE = frozenset({
    ".txt", ".text", ".md", ".markdown", ".rst", ".adoc", ".org", ".tex", ".html", ".htm", ".xhtml",
})  # fmt: skip
PROGRAMS = frozenset({
    ".py", ".pyi", ".c", ".h", ".cc", ".cpp", ".cxx", ".hh", ".hpp", ".hxx", ".cu", ".cuh", ".m", ".mm", ".cs", ".java",
    ".kt", ".scala", ".go", ".rs", ".swift", ".zig", ".d", ".js", ".jsx", ".mjs", ".cjs", ".ts", ".tsx", ".rb", ".php",
    ".pl", ".pm", ".lua", ".r", ".jl", ".hs", ".ml", ".mli", ".ex", ".exs", ".erl", ".clj", ".el", ".lisp", ".dart",
    ".nim", ".f", ".f90", ".f95", ".sh", ".bash", ".sql", ".asm", ".s", ".v", ".vhd", ".proto", ".cmake",
})  # fmt: skip
READ_BY_DEFAULT = PROSE | PROGRAMS | {".jsonl", ".ndjson", ".parquet", ".arrow"}
"""Suffixes of the files that a source without `include` gives: prose, program sources, tables of documents; each may
end in .gz too. JSON, CSV and logs are read only when the recipe names them: most are no text to learn from. Manual
pages are read too, by their place."""
SKIPPED_FOLDERS = frozenset({"__pycache__", "site-packages", "dist-packages", "node_modules"})
"""Folders of third-party or generated code; folders whose name begins with a dot are skipped too."""

_SLOW_CODECS = ("punycode", "idna")
"""Codecs that a source may declare and whose time grows with the square of its length; no text is written in them."""


class LeftOutError(Exception):
    """A file is left out; the argument is the reason under which it is counted."""


def source_place(source: str, base: Path | None = None) -> Path:
    """The file or folder that a recipe's `source` names, links resolved.

    Args:
        source: a path, or "python-stdlib" for the standard library of the running Python.
        base: folder for relative paths; the working directory by default.

    Raises:
        OperatorError: it does not exist, or is a pipe or a device.
    """
    if source == STANDARD_LIBRARY:
        return source_folder(source)
    place = (base or Path()).joinpath(Path(source).expanduser())
    if not place.is_dir() and not place.is_file():
        raise OperatorError(
            f"source {printable(source, 200)!r} is not a file or a folder",
            f'give a file of text, a folder, or "{STANDARD_LIBRARY}"',
        )
    return place.resolve()


def patterns_of(source: str, include: Sequence[str]) -> Sequence[str]:
    """The patterns that hold for a source: those of the recipe; without any, Python files of the standard library, and
    nothing for other sources, which means the suffixes of `READ_BY_DEFAULT`."""
    return include or (("*.py",) if source == STANDARD_LIBRARY else ())


def source_folder(source: str, base: Path | None = None) -> Path:
    """The folder that a recipe's `source` names.

    Args:
        source: a path, or "python-stdlib" for the standard library of the running Python.
        base: folder for relative paths; the working directory by default.

    Raises:
        OperatorError: the folder does not exist.
    """
    if source == STANDARD_LIBRARY:
        return Path(sysconfig.get_paths()["stdlib"]).resolve()
    folder = (base or Path()).joinpath(Path(source).expanduser())
    if not folder.is_dir():
        raise OperatorError(f"source {source!r} is not a folder", f'give a folder of sources, or "{STANDARD_LIBRARY}"')
    return folder.resolve()


def walk_sources(
    folder: Path,
    include: Sequence[str],
    exclude: Sequence[str],
    dropped: Counter[str],
    passed_over: Callable[[str], None] = lambda _inside: None,
) -> Iterator[tuple[str, Path]]:
    """Regular files that match, as (path inside the folder with `/`, absolute path), ordered by name.

    Symbolic links are not followed, so loops end and nothing outside the folder is read. In a snapshot of a hub's
    cache, whose files are links, those into the cache's own blobs are files.

    Args:
        folder: the folder to walk.
        include: patterns on the file's name, or, with a `/` in them, on its path inside the folder; without any, the
            suffixes of `READ_BY_DEFAULT`.
        exclude: patterns on the path inside the folder; `*` also matches `/`.
        dropped: counts what is left out, by reason.
        passed_over: called with the path inside the folder of each file that `include` does not name.
    """
    blobs = blobs_of(folder)
    waiting = [(folder, "")]
    while waiting:
        at, prefix = waiting.pop()
        try:
            entries = sorted(os.scandir(at), key=lambda entry: entry.name)
        except OSError:
            dropped["unreadable_folder"] += 1
            continue
        folders = []
        for entry in entries:
            inside = prefix + entry.name
            if entry.is_dir(follow_symlinks=False):
                if entry.name not in SKIPPED_FOLDERS and not entry.name.startswith("."):
                    folders.append((at / entry.name, inside + "/"))
            elif not _included(entry.name, inside, include, at):
                passed_over(inside)
            else:
                reason = _reason_to_skip(entry, inside, exclude, blobs)
                if reason:
                    dropped[reason] += 1
                else:
                    yield inside, at / entry.name
        waiting.extend(reversed(folders))


def kind_of_file(name: str) -> str:
    """The suffix that says what a file is, in lower case and without .gz behind it; empty without one."""
    return PurePosixPath(name.lower().removesuffix(".gz")).suffix


def is_manual_page(file: PurePath) -> bool:
    """Whether a file is a manual page by its place: `man3/open.3.gz`, whose folder and suffix name a section."""
    section = kind_of_file(file.name)[1:]
    return bool(section) and file.parent.name.startswith("man") and file.parent.name[3:4] == section[0].lower()


def _included(name: str, inside: str, include: Sequence[str], folder: Path) -> bool:
    if not include:
        return kind_of_file(name) in READ_BY_DEFAULT or is_manual_page(folder / name)
    return any(fnmatchcase(inside if "/" in pattern else name, pattern) for pattern in include)


def blobs_of(folder: Path) -> Path | None:
    """The folder to which links in a snapshot of a Hugging Face cache lead; None for any other folder."""
    for place in (folder, *folder.parents):
        blobs = place.parent.parent / "blobs"
        if place.parent.name == "snapshots" and blobs.is_dir():
            return blobs.resolve()
    return None


def _reason_to_skip(entry: os.DirEntry[str], inside: str, exclude: Sequence[str], blobs: Path | None) -> str:
    if any(fnmatchcase(inside, pattern) for pattern in exclude):
        return "excluded"
    cached = blobs is not None and entry.is_symlink() and Path(entry.path).resolve().parent == blobs
    if entry.is_symlink() and not cached:
        return "symbolic_link"
    if not entry.is_file(follow_symlinks=cached):
        return "not_a_file"
    try:
        inside.encode("utf-8")
    except UnicodeEncodeError:
        return "path_not_utf8"
    return ""


def read_source(file: Path, max_bytes: int) -> str:
    """The text of a file, with unchanged line ends.

    Python files are decoded by their PEP 263 cookie, all others as UTF-8; a byte-order mark is removed, and that of
    UTF-16 decides the encoding.

    Raises:
        LeftOutError: with the reason: unreadable, too_large, binary, not_utf8 or empty.
    """
    try:
        with open_regular(file, follow=False) as content:  # since the walk it may have become a link or a pipe
            data = content.read(max_bytes + 1)
    except OSError as error:
        raise LeftOutError("unreadable") from error
    if len(data) > max_bytes:
        raise LeftOutError("too_large")
    text = decode_source(data, python=file.suffix in {".py", ".pyi"})
    if not text.strip():
        raise LeftOutError("empty")
    return text


def decode_source(data: bytes, *, python: bool) -> str:
    """The text of a file's bytes; see `read_source`.

    Raises:
        LeftOutError: binary or not_utf8.
    """
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    if b"\0" in data and not wide:
        raise LeftOutError("binary")
    try:
        if wide:
            encoding = "utf-16"
        else:
            encoding = tokenize.detect_encoding(io.BytesIO(data).readline)[0] if python else "utf-8-sig"
        if codecs.lookup(encoding).name in _SLOW_CODECS:
            raise LeftOutError("not_utf8")
        text = data.decode(encoding)
        text.encode("utf-8")  # some codecs produce lone surrogates, which JSON cannot encode
    except (SyntaxError, LookupError, ValueError) as error:
        raise LeftOutError("not_utf8") from error
    if "\0" in text:
        raise LeftOutError("binary")
    return text
