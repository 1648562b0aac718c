"""YAML and JSON from elsewhere as plain values, with the line of every key.

Only mappings, lists and the plain scalars are read: no tag constructs an object, aliases and depth are bounded.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engines.json_text import parse_json
from recipes.problems import OperatorError, printable

KeyPath = tuple[str | int, ...]

MAX_VALUES = 100_000
"""With aliases counted as often as they are used, so that a small file cannot stand for a large one."""
MAX_DEPTH = 40
_TAG = "tag:yaml.org,2002:"
_PLAIN_TAGS = frozenset({_TAG + "map", _TAG + "seq"})
_TEXT_TAGS = frozenset(_TAG + name for name in ("str", "timestamp", "binary", "value"))


@dataclass
class Document:
    """What a file says.

    Attributes:
        value: mappings, lists, text, numbers, booleans and None.
        lines: the line of each key and list item, by its path.
        repeated: keys that stand more than once in their mapping: path, line of the first, line of the last, which
            counts.
    """

    value: Any = None
    lines: dict[KeyPath, int] = field(default_factory=dict)
    repeated: list[tuple[KeyPath, int, int]] = field(default_factory=list)


def read_yaml(text: str, path: Path) -> Document:
    """The document of a YAML text.

    Raises:
        OperatorError: the text is not YAML, is too deep or too large, or has a tag that constructs an object; with
            `file:line`.
    """
    import yaml

    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise _not_yaml(path, mark.line + 1 if mark else 0, _words(error)) from None
    except yaml.YAMLError as error:
        raise _not_yaml(path, 0, str(error).splitlines()[0]) from None
    except (RecursionError, ValueError, IndexError, UnicodeError) as error:
        raise _not_yaml(path, 0, "nested too deeply" if isinstance(error, RecursionError) else str(error)) from None
    reading = _Reading(path)
    if node is not None:
        reading.document.value = reading.value(node, (), 1)
    return reading.document


def read_json_document(text: str, path: Path) -> Document:
    """The document of a JSON text; its lines are found by reading it as YAML, of which JSON is a part.

    Raises:
        OperatorError: the text is not JSON.
    """
    try:
        value = parse_json(text)
    except json.JSONDecodeError as error:
        raise OperatorError(f"{_place(path, error.lineno)}: not JSON: {error.msg}") from None
    except ValueError as error:
        raise OperatorError(f"{_place(path, 0)}: not JSON: {printable(str(error), 200)}") from None
    try:  # a tab in valid JSON stands between its parts, where YAML has spaces
        document = read_yaml(text.replace("\t", " "), path)
    except OperatorError:
        document = Document()
    document.value = value
    return document


class _Reading:
    """Nodes of a composed document, turned into values."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.document = Document()
        self.count = 0

    def value(self, node: Any, where: KeyPath, depth: int) -> Any:
        self.count += 1
        line = node.start_mark.line + 1
        if depth > MAX_DEPTH:
            raise _not_yaml(self.path, line, f"more than {MAX_DEPTH} levels deep, or an alias that contains itself")
        if self.count > MAX_VALUES:
            raise _not_yaml(self.path, line, f"more than {MAX_VALUES} values, with aliases counted at each use")
        if node.id != "scalar" and node.tag not in _PLAIN_TAGS:
            raise self._object(node.tag, line)
        if node.id == "mapping":
            return self._mapping(node, where, depth)
        if node.id == "sequence":
            for number, item in enumerate(node.value):
                self.document.lines[(*where, number)] = item.start_mark.line + 1
            return [self.value(item, (*where, number), depth + 1) for number, item in enumerate(node.value)]
        return self._scalar(node, line)

    def _mapping(self, node: Any, where: KeyPath, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        own: dict[str, int] = {}
        for name, key, item, merged in self._pairs(node, depth):
            if merged and name in own:
                continue
            path, line = (*where, name), key.start_mark.line + 1
            if not merged:
                if name in own:
                    self.document.repeated.append((path, own[name], line))
                own[name] = line
            self.document.lines[path] = line
            found[name] = self.value(item, path, depth + 1)
        return found

    def _pairs(self, node: Any, depth: int) -> Iterator[tuple[str, Any, Any, bool]]:
        """Name, key, value, and whether the pair comes from a merge key; a mapping's own keys come first."""
        merges: list[Any] = []
        for key, item in node.value:
            if key.id != "scalar":
                raise _not_yaml(self.path, key.start_mark.line + 1, "a key that is a list or a mapping")
            if key.tag == _TAG + "merge":
                merges += item.value if item.id == "sequence" else [item]
            else:
                self._scalar(key, key.start_mark.line + 1)  # refuses the tag of an object
                yield key.value, key, item, False
        if merges and depth > MAX_DEPTH:
            raise _not_yaml(self.path, node.start_mark.line + 1, f"more than {MAX_DEPTH} levels deep")
        for merge in merges:
            if merge.id != "mapping":
                raise _not_yaml(self.path, merge.start_mark.line + 1, "<< needs a mapping")
            for name, key, item, _ in self._pairs(merge, depth + 1):
                yield name, key, item, True

    def _scalar(self, node: Any, line: int) -> Any:
        import yaml

        constructor = yaml.constructor.SafeConstructor()
        if node.tag in _TEXT_TAGS:
            return node.value
        try:
            if node.tag == _TAG + "null":
                return None
            if node.tag == _TAG + "bool":
                return constructor.construct_yaml_bool(node)
            if node.tag == _TAG + "int":
                return constructor.construct_yaml_int(node)
            if node.tag == _TAG + "float":
                return constructor.construct_yaml_float(node)
        except (ValueError, KeyError, IndexError, OverflowError):
            return node.value
        raise self._object(node.tag, line)

    def _object(self, tag: str, line: int) -> OperatorError:
        return _not_yaml(self.path, line, f"the tag {printable(tag)} would construct an object")


def _words(error: Any) -> str:
    """PyYAML's explanation, in its two parts."""
    return " ".join(part for part in (error.context, error.problem) if part) or "not YAML"


def _not_yaml(path: Path, line: int, what: str) -> OperatorError:
    return OperatorError(f"{_place(path, line)}: not YAML that can be read: {printable(what, 200)}")


def _place(path: Path, line: int) -> str:
    spot = printable(str(path), 400)
    return f"{spot}:{line}" if line else spot
