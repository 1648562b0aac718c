"""Walk the tree of a code base: its sources by language, the files of its build, and its licences. The tree is not
trusted: links are not followed, and nothing in it is executed."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from engines.files import open_regular
from engines.inputs.ignored import Mark, Rule, has_mark, ignore_rules, is_ignored, marks_of
from engines.inputs.source_tree import SKIPPED_FOLDERS
from recipes.stages.code_fields import LANGUAGES, SUFFIXES, CodeFields

Role = Literal["source", "build", "license", "rules"]

BUILD_FILES = frozenset({
    "CMakeLists.txt", "CMakePresets.json", "Makefile", "GNUmakefile", "makefile", "configure.ac", "configure",
    "package.json", "package-lock.json", "pnpm-lock.yaml", "yarn.lock", "bun.lock", "bun.lockb",
    "Cargo.toml", "go.mod", "pom.xml", "mvnw", "build.gradle", "build.gradle.kts", "settings.gradle",
    "settings.gradle.kts", "gradlew", "meson.build", "pyproject.toml", "setup.py", "requirements.txt", "poetry.lock",
    "uv.lock", "tox.ini", "MODULE.bazel", "WORKSPACE", "WORKSPACE.bazel",
})  # fmt: skip
"""Names of files that say how a project is built."""
BUILD_DEPTH = 2
"""How many folders below the top a file of a build may lie."""
_LICENSE = re.compile(r"^(LICEN[CS]E|COPYING|UNLICENSE)([.-][A-Za-z0-9.-]{1,30})?$", re.IGNORECASE)
_VENDORED = re.compile(
    r"^(_?vendor(s|ed)?|third[-_]?part(y|ies)|3rd[-_]?party|extern(al)?|bower_components|Godeps|subprojects)$",
    re.IGNORECASE,
)
_GENERATED_NAMES = (
    "*.min.js", "*.min.mjs", "*.bundle.js", "*-min.js", "*.pb.go", "*.pb.h", "*.pb.cc", "*_pb2.py", "*_pb2.pyi",
    "*_pb2_grpc.py", "*_pb.js", "*_pb.d.ts", "*.pb.gw.go", "zz_generated*.go", "moc_*.cpp", "moc_*.h", "qrc_*.cpp",
    "ui_*.h", "*.designer.cs", "*.g.h", "*_generated.h", "*_generated.go", "*_generated.rs", "*.generated.*",
)  # fmt: skip
_RULES_BYTES = 262_144
_MOST_RULES = 5000
"""Rules of a folder and all folders above it; more are not read."""


@dataclass(frozen=True)
class CodeFile:
    """A file to read. `path` is relative to the source, with `/`; `language` is empty except for a source."""

    path: str
    file: Path
    role: Role
    language: str = ""


@dataclass(frozen=True)
class CodeRules:
    """Which files of a tree are read; the names and values are those of the recipe's fields."""

    languages: tuple[str, ...] = LANGUAGES
    exclude: tuple[str, ...] = ()
    keep_vendored: bool = False
    keep_generated: bool = False

    @classmethod
    def of(cls, stage: CodeFields) -> CodeRules:
        """The rules of a stage's fields."""
        return cls(
            tuple(stage.languages), tuple(stage.exclude_sources), stage.vendored == "keep", stage.generated == "keep"
        )


@dataclass(frozen=True)
class _Place:
    """A folder to walk, with the rules of the folders above it."""

    folder: Path
    prefix: str
    ignores: tuple[Rule, ...] = ()
    marks: tuple[Mark, ...] = ()


@dataclass
class _Entries:
    """What a folder contains, ordered by name."""

    files: list[os.DirEntry[str]] = field(default_factory=list)
    folders: list[os.DirEntry[str]] = field(default_factory=list)
    names: frozenset[str] = frozenset()


def code_files(folder: Path, rules: CodeRules, dropped: Counter[str]) -> Iterator[CodeFile]:
    """The files of a code base that its questions depend on, folder by folder, each ordered by name.

    Files that `.gitignore` leaves out, third-party folders, generated files, and the folders of a build are left out.

    Args:
        folder: the top of the tree.
        rules: which files are read.
        dropped: counts what is left out, by reason: sources for files, folders for whole folders.
    """
    waiting = [_Place(folder, "")]
    while waiting:
        place = waiting.pop()
        entries = _entries(place, dropped)
        yield from (CodeFile(place.prefix + entry.name, Path(entry.path), "rules") for entry in _rule_files(entries))
        place = _with_rules(place, entries)
        for entry in entries.files:
            found = _file(place, entry, rules, dropped)
            if found is not None:
                yield found
        inner = []
        for entry in entries.folders:
            reason = _reason_to_skip_folder(place, entry, entries, rules)
            if reason:
                dropped[reason] += 1
            else:
                inner.append(_Place(Path(entry.path), f"{place.prefix}{entry.name}/", place.ignores, place.marks))
        waiting.extend(reversed(inner))


def _entries(place: _Place, dropped: Counter[str]) -> _Entries:
    try:
        found = sorted(os.scandir(place.folder), key=lambda entry: entry.name)
    except OSError:
        dropped["unreadable_folder"] += 1
        return _Entries()
    folders = [entry for entry in found if entry.is_dir(follow_symlinks=False) and not entry.name.startswith(".")]
    return _Entries(
        [entry for entry in found if not entry.is_dir(follow_symlinks=False)],
        folders,
        frozenset(entry.name for entry in found),
    )


def _rule_files(entries: _Entries) -> list[os.DirEntry[str]]:
    names = (".gitattributes", ".gitignore")
    return [entry for entry in entries.files if entry.name in names and entry.is_file(follow_symlinks=False)]


def _with_rules(place: _Place, entries: _Entries) -> _Place:
    ignores, marks = place.ignores, place.marks
    for entry in _rule_files(entries):
        try:
            with open_regular(Path(entry.path), follow=False) as opened:
                text = opened.read(_RULES_BYTES).decode("utf-8", "replace")
        except OSError:
            continue
        if entry.name == ".gitignore":
            ignores = (*ignores, *ignore_rules(text, place.prefix))[:_MOST_RULES]
        else:
            marks = (*marks, *marks_of(text, place.prefix))[:_MOST_RULES]
    return _Place(place.folder, place.prefix, ignores, marks)


def _reason_to_skip_folder(place: _Place, entry: os.DirEntry[str], beside: _Entries, rules: CodeRules) -> str:
    inside = place.prefix + entry.name
    if entry.name in SKIPPED_FOLDERS:
        return "third_party_folder" if entry.name != "__pycache__" else "cache_folder"
    if not rules.keep_vendored and _VENDORED.match(entry.name):
        return "third_party_folder"
    if is_ignored(place.ignores, inside, is_folder=True):
        return "ignored_folder"
    rust_output = entry.name == "target" and "Cargo.toml" in beside.names
    if rust_output or Path(entry.path, "CMakeCache.txt").is_file():
        return "build_folder"
    return ""


def _file(place: _Place, entry: os.DirEntry[str], rules: CodeRules, dropped: Counter[str]) -> CodeFile | None:
    inside = place.prefix + entry.name
    depth = place.prefix.count("/")
    language = SUFFIXES.get(os.path.splitext(entry.name)[1].lower(), "")  # noqa: PTH122 - many files
    wanted = language in rules.languages or (language == "c" and "cpp" in rules.languages and entry.name[-2:] == ".h")
    role: Role | None = "source" if wanted else None
    if _LICENSE.match(entry.name):
        role = "license"
    elif entry.name in BUILD_FILES and depth <= BUILD_DEPTH:
        role = "build"
    if role is None:
        return None
    reason = _reason_to_skip_file(place, entry, inside, role, rules)
    if reason:
        if role == "source":
            dropped[reason] += 1
        return None
    return CodeFile(inside, Path(entry.path), role, language if wanted else "")


def _reason_to_skip_file(place: _Place, entry: os.DirEntry[str], inside: str, role: Role, rules: CodeRules) -> str:
    if any(fnmatchcase(inside, pattern) for pattern in rules.exclude):
        return "excluded"
    if entry.is_symlink():
        return "symbolic_link"
    if not entry.is_file(follow_symlinks=False):
        return "not_a_file"
    try:
        inside.encode("utf-8")
    except UnicodeEncodeError:
        return "path_not_utf8"
    if is_ignored(place.ignores, inside, is_folder=False):
        return "ignored"
    if role == "source" and not rules.keep_vendored and has_mark(place.marks, inside, "vendored"):
        return "vendored"
    if role == "source" and not rules.keep_generated and _generated_by_name(place, entry.name, inside):
        return "generated"
    return ""


def _generated_by_name(place: _Place, name: str, inside: str) -> bool:
    marked = has_mark(place.marks, inside, "generated")
    return marked if marked is not None else any(fnmatchcase(name, pattern) for pattern in _GENERATED_NAMES)
