"""JSON Schema, the part that describes data: a value is compared with a schema, and problems name their place.

Keywords of drafts 6 to 2020-12. A keyword that this module does not know is refused before anything is compared, so
none is left out without notice. `format`, `title` and the like describe and do not decide, as the standard has it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

Search = Callable[[str, str], bool]
"""Whether a pattern is found in a text; takes bounded time."""

_TYPES: Mapping[str, Callable[[Any], bool]] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "integer": lambda value: _is_number(value) and (isinstance(value, int) or value.is_integer()),
}
_DESCRIBING = frozenset({
    "$schema", "$id", "$comment", "$defs", "definitions", "title", "description", "default", "examples", "format",
    "deprecated", "readOnly", "writeOnly",
})  # fmt: skip
_ONE = frozenset({"additionalProperties", "items", "contains", "not", "propertyNames", "if", "then", "else"})
"""Keywords whose value is a schema."""
_LISTS = frozenset({"allOf", "anyOf", "oneOf", "prefixItems"})
_MAPS = frozenset({"properties", "patternProperties", "dependentSchemas", "$defs", "definitions"})
_COUNTS = frozenset({
    "minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties", "minContains", "maxContains",
})  # fmt: skip
_NUMBERS = frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"})
_PLAIN = frozenset({"type", "enum", "const", "required", "pattern", "uniqueItems", "dependentRequired", "$ref"})
KEYWORDS = _DESCRIBING | _ONE | _LISTS | _MAPS | _COUNTS | _NUMBERS | _PLAIN
MOST_DEPTH = 64
"""Levels of schemas within schemas, references included."""
MOST_STEPS = 50_000
"""Schemas that are compared with values for one answer."""


class _Mismatch(Exception):  # noqa: N818 - the normal outcome of a comparison
    pass


def schema_problem(schema: Any) -> str:
    """Why a schema cannot be used; empty if it can."""
    return _Reader(schema).problem(schema, "#", 0)


def schema_patterns(schema: Any) -> list[str]:
    """Every pattern in a usable schema."""
    found: list[str] = []

    def look(one: Any) -> None:
        if isinstance(one, dict):
            found.extend([one["pattern"]] if isinstance(one.get("pattern"), str) else [])
            found.extend(one.get("patternProperties", {}))
            for inner in _inner(one):
                look(inner)

    look(schema)
    return found


def mismatch(value: Any, schema: Any, search: Search) -> str:
    """Where and why a value does not fit a usable schema; empty if it does."""
    try:
        _Comparison(schema, search).check(value, schema, "$", 0)
    except _Mismatch as error:
        return str(error)
    return ""


def _inner(schema: Mapping[str, Any]) -> list[Any]:
    """The schemas directly in a schema."""
    inner = [schema[key] for key in _ONE & schema.keys()]
    inner += [one for key in _LISTS & schema.keys() for one in schema[key]]
    return inner + [one for key in _MAPS & schema.keys() for one in schema[key].values()]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return _is_number(value) and value >= 0 and (isinstance(value, int) or value.is_integer())


def _resolve(root: Any, reference: str) -> Any:
    """The schema that a local reference (`#`, `#/$defs/x`) names; KeyError if the document has no such schema."""
    if reference != "#" and not reference.startswith("#/"):
        raise KeyError(reference)
    found = root
    for part in reference.split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(found, list) and key.isdecimal() and int(key) < len(found):
            found = found[int(key)]
        elif isinstance(found, dict) and key in found:
            found = found[key]
        else:
            raise KeyError(reference)
    return found


class _Reader:
    """Looks for what a comparison could not use."""

    def __init__(self, root: Any) -> None:
        self._root = root

    def problem(self, schema: Any, where: str, depth: int) -> str:
        if isinstance(schema, bool):
            return ""
        if not isinstance(schema, dict):
            return f"{where} is not a schema (an object, true or false)"
        if depth > MOST_DEPTH:
            return f"{where} is nested deeper than {MOST_DEPTH} schemas"
        unknown = sorted(schema.keys() - KEYWORDS)
        if unknown:
            return f"{where} has the keyword {unknown[0][:60]}, which is not supported"
        for key, value in schema.items():
            bad = self._of_keyword(key, value)
            if bad:
                return f"{where}/{key} {bad}"
        return self._within(schema, where, depth)

    def _within(self, schema: Mapping[str, Any], where: str, depth: int) -> str:
        named = [(schema[key], f"{where}/{key}") for key in sorted(_ONE & schema.keys())]
        for key in sorted(_LISTS & schema.keys()):
            named += [(one, f"{where}/{key}/{at}") for at, one in enumerate(schema[key])]
        for key in sorted(_MAPS & schema.keys()):
            named += [(one, f"{where}/{key}/{name}") for name, one in schema[key].items()]
        return next((bad for bad in (self.problem(one, place, depth + 1) for one, place in named) if bad), "")

    def _of_keyword(self, key: str, value: Any) -> str:
        if key in _LISTS:
            return "" if isinstance(value, list) and value else "is not a list of schemas"
        if key in _MAPS:
            return "" if isinstance(value, dict) else "is not an object of schemas"
        if key in _COUNTS:
            return "" if _is_count(value) else "is not a whole number from 0"
        if key in _NUMBERS:
            good = _is_number(value) and math.isfinite(value) and (key != "multipleOf" or value > 0)
            return "" if good else "is not a number, above 0 for multipleOf"
        return self._of_plain(key, value)

    def _of_plain(self, key: str, value: Any) -> str:
        if key == "type":
            names = value if isinstance(value, list) else [value]
            good = all(isinstance(name, str) and name in _TYPES for name in names) and names
            return "" if good else f"is not one of {', '.join(_TYPES)}"
        if key == "$ref":
            return self._of_reference(value)
        shapes: dict[str, Callable[[Any], bool]] = {
            "enum": lambda one: isinstance(one, list),
            "required": _is_names,
            "pattern": lambda one: isinstance(one, str),
            "uniqueItems": lambda one: isinstance(one, bool),
            "dependentRequired": lambda one: isinstance(one, dict) and all(map(_is_names, one.values())),
        }
        return "" if shapes.get(key, lambda _one: True)(value) else "has another type than the standard says"

    def _of_reference(self, value: Any) -> str:
        try:
            _resolve(self._root, value if isinstance(value, str) else "")
        except KeyError:
            return 'names no schema in the same document, such as "#/$defs/x"'
        return ""


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


class _Comparison:
    """Compares one value with one schema; the number of steps is bounded."""

    def __init__(self, root: Any, search: Search) -> None:
        self._root, self._search, self._steps = root, search, 0

    def fits(self, value: Any, schema: Any, where: str, depth: int) -> bool:
        try:
            self.check(value, schema, where, depth)
        except _Mismatch:
            return False
        return True

    def check(self, value: Any, schema: Any, where: str, depth: int) -> None:
        self._steps += 1
        if depth > MOST_DEPTH or self._steps > MOST_STEPS:
            raise _Mismatch(f"{where}: the schema refers to itself too often to be compared")
        if schema is True:
            return
        if schema is False:
            raise _Mismatch(f"{where} is not allowed")
        if "$ref" in schema:
            self.check(value, _resolve(self._root, schema["$ref"]), where, depth + 1)
        self._whole(value, schema, where)
        if isinstance(value, str):
            self._text(value, schema, where)
        elif _is_number(value):
            _number(value, schema, where)
        elif isinstance(value, list):
            self._array(value, schema, where, depth)
        elif isinstance(value, dict):
            self._object(value, schema, where, depth)
        self._combined(value, schema, where, depth)

    def _whole(self, value: Any, schema: Mapping[str, Any], where: str) -> None:
        if "type" in schema:
            names = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
            if not any(_TYPES[name](value) for name in names):
                raise _Mismatch(f"{where} is {_type(value)}; expected {' or '.join(names)}")
        if "enum" in schema and not any(same(value, one) for one in schema["enum"]):
            raise _Mismatch(f"{where} is not one of {json.dumps(schema['enum'])[:80]}")
        if "const" in schema and not same(value, schema["const"]):
            raise _Mismatch(f"{where} is not {json.dumps(schema['const'])[:80]}")

    def _text(self, value: str, schema: Mapping[str, Any], where: str) -> None:
        _bounded(len(value), schema, "Length", where, "characters")
        if "pattern" in schema and not self._search(schema["pattern"], value):
            raise _Mismatch(f"{where} does not match {schema['pattern'][:80]}")

    def _array(self, value: list[Any], schema: Mapping[str, Any], where: str, depth: int) -> None:
        _bounded(len(value), schema, "Items", where, "items")
        first = schema.get("prefixItems", [])
        for at, one in enumerate(value):
            inner = first[at] if at < len(first) else schema.get("items", True)
            self.check(one, inner, f"{where}[{at}]", depth + 1)
        if schema.get("uniqueItems") and len({canonical(one) for one in value}) < len(value):
            raise _Mismatch(f"{where} has an item twice")
        if "contains" in schema:
            fitting = sum(self.fits(one, schema["contains"], where, depth + 1) for one in value)
            if not schema.get("minContains", 1) <= fitting <= schema.get("maxContains", len(value)):
                raise _Mismatch(f"{where} has {fitting} items that fit contains")

    def _object(self, value: dict[str, Any], schema: Mapping[str, Any], where: str, depth: int) -> None:
        _bounded(len(value), schema, "Properties", where, "keys")
        needed = [*schema.get("required", [])]
        for key, names in schema.get("dependentRequired", {}).items():
            needed += names if key in value else []
        missing = [key for key in needed if key not in value]
        if missing:
            raise _Mismatch(f'{where} has no "{missing[0][:60]}"')
        for key, one in value.items():
            place = f"{where}.{key[:60]}"
            for inner in self._schemas_of(key, schema):
                self.check(one, inner, place, depth + 1)
            if "propertyNames" in schema:
                self.check(key, schema["propertyNames"], f"the key {place}", depth + 1)
        for key, inner in schema.get("dependentSchemas", {}).items():
            if key in value:
                self.check(value, inner, where, depth + 1)

    def _schemas_of(self, key: str, schema: Mapping[str, Any]) -> list[Any]:
        found = [schema["properties"][key]] if key in schema.get("properties", {}) else []
        patterns = schema.get("patternProperties", {})
        found += [inner for pattern, inner in patterns.items() if self._search(pattern, key)]
        return found or [schema.get("additionalProperties", True)]

    def _combined(self, value: Any, schema: Mapping[str, Any], where: str, depth: int) -> None:
        for inner in schema.get("allOf", []):
            self.check(value, inner, where, depth + 1)
        if "anyOf" in schema and not any(self.fits(value, one, where, depth + 1) for one in schema["anyOf"]):
            raise _Mismatch(f"{where} fits none of anyOf")
        if "oneOf" in schema:
            fitting = sum(self.fits(value, one, where, depth + 1) for one in schema["oneOf"])
            if fitting != 1:
                raise _Mismatch(f"{where} fits {fitting} of oneOf; expected 1")
        if "not" in schema and self.fits(value, schema["not"], where, depth + 1):
            raise _Mismatch(f"{where} fits the schema in not")
        if "if" in schema:
            branch = "then" if self.fits(value, schema["if"], where, depth + 1) else "else"
            self.check(value, schema.get(branch, True), where, depth + 1)


def _bounded(found: int, schema: Mapping[str, Any], what: str, where: str, unit: str) -> None:
    low, high = schema.get(f"min{what}", 0), schema.get(f"max{what}", math.inf)
    if not low <= found <= high:
        raise _Mismatch(f"{where} has {found} {unit}; allowed {low} to {high}")


def _number(value: float, schema: Mapping[str, Any], where: str) -> None:
    if value < schema.get("minimum", value) or value > schema.get("maximum", value):
        raise _Mismatch(f"{where} is {value!r:.40}, out of range")
    if value <= schema.get("exclusiveMinimum", -math.inf) or value >= schema.get("exclusiveMaximum", math.inf):
        raise _Mismatch(f"{where} is {value!r:.40}, out of range")
    step = schema.get("multipleOf")
    if step is not None and (not math.isfinite(value) or Fraction(repr(value)) % Fraction(repr(step))):
        raise _Mismatch(f"{where} is {value!r:.40}, not a multiple of {step}")


def _type(value: Any) -> str:
    return next((name for name in ("boolean", "null", *_TYPES) if _TYPES[name](value)), "unknown")


def same(first: Any, second: Any) -> bool:
    """Whether two JSON values are equal: 1 equals 1.0, and true does not equal 1."""
    return canonical(first) == canonical(second)


def canonical(value: Any) -> str:
    """A text that equal JSON values share, whatever the order of keys and the form of numbers."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{json.dumps(key)}:{canonical(value[key])}" for key in sorted(value)) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(canonical, value)) + "]"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return json.dumps(value)
