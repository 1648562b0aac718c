"""Walk a folder of sources: which files are read, which are left out, and why. The content of the tree is not
trusted."""

from __future__ import annotations

import io
import os
import sysconfig
import tokenize
from collections import Counter
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from engines.files import open_regular
from recipes.problems import OperatorError

STANDARD_LIBRARY = "python-stdlib"
SKIPPED_FOLDERS = frozenset({"__pycache__", "site-packages", "dist-packages", "node_modules"})
"""Folders of third-party or generated code; folders whose name begins with a dot are skipped too."""


class LeftOutError(Exception):
    """A file is left out; the argument is the reason under which it is counted."""


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
    folder: Path, include: Sequence[str], exclude: Sequence[str], dropped: Counter[str]
) -> Iterator[tuple[str, Path]]:
    """Regular files that match, as (path inside the folder with `/`, absolute path), ordered by name.

    Symbolic links are not followed, so loops end and nothing outside the folder is read.

    Args:
        folder: the folder to walk.
        include: patterns on the file's name, or, with a `/` in them, on its path inside the folder.
        exclude: patterns on the path inside the folder; `*` also matches `/`.
        dropped: counts what is left out, by reason.
    """
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
            elif any(fnmatchcase(inside if "/" in pattern else entry.name, pattern) for pattern in include):
                reason = _reason_to_skip(entry, inside, exclude)
                if reason:
                    dropped[reason] += 1
                else:
                    yield inside, at / entry.name
        waiting.extend(reversed(folders))


def _reason_to_skip(entry: os.DirEntry[str], inside: str, exclude: Sequence[str]) -> str:
    if any(fnmatchcase(inside, pattern) for pattern in exclude):
        return "excluded"
    if entry.is_symlink():
        return "symbolic_link"
    if not entry.is_file(follow_symlinks=False):
        return "not_a_file"
    try:
        inside.encode("utf-8")
    except UnicodeEncodeError:
        return "path_not_utf8"
    return ""


def read_source(file: Path, max_bytes: int) -> str:
    """The text of a file, with unchanged line ends.

    Python files are decoded by their PEP 263 cookie, all others as UTF-8; a byte-order mark is removed.

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
    if b"\0" in data:
        raise LeftOutError("binary")
    text = _decode(data, python=file.suffix in {".py", ".pyi"})
    if not text.strip():
        raise LeftOutError("empty")
    return text


def _decode(data: bytes, *, python: bool) -> str:
    try:
        encoding = tokenize.detect_encoding(io.BytesIO(data).readline)[0] if python else "utf-8-sig"
        text = data.decode(encoding)
        text.encode("utf-8")  # some codecs produce lone surrogates, which JSON cannot encode
    except (SyntaxError, LookupError, ValueError) as error:
        raise LeftOutError("not_utf8") from error
    if "\0" in text:
        raise LeftOutError("binary")
    return text
