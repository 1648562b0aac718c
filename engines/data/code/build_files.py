"""What the files of a build say: names, targets, options, scripts and dependencies. Nothing is executed, and every
reader gives what it finds of a file that is broken."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from typing import Any

_CMAKE_WORDS = re.compile(r'"(?:[^"\\]|\\[\s\S])*(?:"|\\?\Z)|[^\s()"#]+|[()]|#[^\n]*')
_MAKE_TARGET = re.compile(
    r"^([A-Za-z0-9][A-Za-z0-9_.-]{0,80}(?:[ \t]{1,4}[A-Za-z0-9][A-Za-z0-9_.-]{0,80}){0,20})[ \t]{0,8}::?(?!=)"
)
_MAKE_GOAL = re.compile(r"^\.DEFAULT_GOAL[ \t]{0,8}[:?]?=[ \t]{0,8}([A-Za-z0-9_.-]{1,80})")
_TAG = re.compile(r"<(/?)([A-Za-z][A-Za-z0-9_.:-]{0,80})([^<>]{0,2000})>([^<]{0,4000})")
_COMMENT = "<!--"
_GO_MODULE = re.compile(
    r"^[ \t]{0,80}(?:require[ \t]{1,8})?([a-z0-9][A-Za-z0-9._~/-]{2,250}) v[0-9]\S{0,80}( // indirect)?"
)
_REQUIREMENT = re.compile(r"^[ \t]{0,8}([A-Za-z0-9][A-Za-z0-9._-]{0,100})")
_GRADLE_PLUGIN = re.compile(r"\bid[ \t]{0,4}\(?[ \t]{0,4}[\"']([A-Za-z0-9._-]{1,120})[\"']")
_GRADLE_NAME = re.compile(r"\brootProject\.name[ \t]{0,4}=[ \t]{0,4}[\"']([^\"'\n]{1,120})[\"']")
_GRADLE_DEPENDENCY = re.compile(
    r"\b(?:implementation|api|compileOnly|runtimeOnly)[ \t]{0,4}\(?[ \t]{0,4}"
    r"[\"']([A-Za-z0-9._-]{1,120}:[A-Za-z0-9._-]{1,120})"
)
MAX_DEPTH = 40


def cmake_commands(text: str) -> Iterator[tuple[str, list[str]]]:
    """The commands of a CMakeLists.txt, each in lower case with its arguments, without comments and quotes."""
    name, depth = "", 0
    arguments: list[str] = []
    for word in _CMAKE_WORDS.findall(text):
        if word.startswith("#"):
            continue
        if word == "(":
            depth += 1
            if depth == 1:
                arguments = []
        elif word == ")":
            depth = max(0, depth - 1)
            if depth == 0 and name:
                yield name.lower(), arguments
                name = ""
        elif depth:
            arguments.append(word.strip('"') if word.startswith('"') else word)
        else:
            name = word


def make_targets(text: str) -> tuple[str, list[str]]:
    """The default target of a makefile and all its targets, in order; patterns, variables and the texts of `define`
    are left out."""
    targets: dict[str, None] = {}
    goal = ""
    in_text = False
    for line in text.replace("\\\r\n", " ").replace("\\\n", " ").splitlines():
        if line.startswith(("define ", "endef")):
            in_text = line.startswith("define ")
        if in_text:
            continue
        if found := _MAKE_GOAL.match(line):
            goal = found[1]
        elif found := _MAKE_TARGET.match(line):
            targets.update(dict.fromkeys(found[1].split()))
    return goal or next(iter(targets), ""), list(targets)


def json_table(text: str) -> dict[str, Any]:
    """The object of a JSON file; empty when it is not one."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def toml_table(text: str) -> dict[str, Any]:
    """The table of a TOML file; empty when it is not one."""
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError):
        return {}


def part(table: Any, *keys: str) -> Any:
    """A value inside tables of tables; None when a key is missing or no table is where one must be."""
    for key in keys:
        table = table.get(key) if isinstance(table, dict) else None
    return table


def words(value: Any) -> list[str]:
    """The strings of a list, or the keys of a table; empty for anything else."""
    found = list(value) if isinstance(value, list | dict) else []
    return [one for one in found if isinstance(one, str)]


def text_of(value: Any) -> str:
    """A string without line ends; empty for anything else."""
    return " ".join(value.split())[:200] if isinstance(value, str) else ""


def xml_texts(text: str) -> Iterator[tuple[tuple[str, ...], str]]:
    """The texts of an XML file with the names of the elements around them; no entity and no declaration is read."""
    stack: list[str] = []
    for closing, name, attributes, content in _TAG.findall(_without_comments(text)):
        if closing:
            if name in stack:
                while stack and stack.pop() != name:
                    pass
        elif not attributes.endswith("/") and len(stack) < MAX_DEPTH:
            stack.append(name)
            if content.strip():
                yield tuple(stack), content.strip()


def _without_comments(text: str) -> str:
    pieces = text.split(_COMMENT)
    return pieces[0] + "".join(piece.partition("-->")[2] for piece in pieces[1:])


def go_requirements(text: str) -> list[str]:
    """The modules that a go.mod requires itself."""
    found = (_GO_MODULE.match(line) for line in text.splitlines())
    return [one[1] for one in found if one and not one[2]]


def requirement_name(line: str) -> str:
    """The distribution of a requirement as pip writes it; empty for an option, an address or a comment."""
    found = None if line.lstrip().startswith(("-", "#")) or "://" in line else _REQUIREMENT.match(line)
    return found[1] if found else ""


def gradle_facts(text: str) -> tuple[str, list[str], list[str]]:
    """The root project's name, the plugins and the dependencies that a Gradle file names literally."""
    named = _GRADLE_NAME.search(text)
    plugins = list(dict.fromkeys(_GRADLE_PLUGIN.findall(text)))
    return named[1] if named else "", plugins, list(dict.fromkeys(_GRADLE_DEPENDENCY.findall(text)))
