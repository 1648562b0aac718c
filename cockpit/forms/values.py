"""Recipe values as one line of text, and back: what a form's row shows, and what is typed into it.

Reading does not validate: text that is not a number goes into the recipe as text, and the recipe's validation reports
it with the same message as everywhere else.
"""

from __future__ import annotations

import re
import tomllib
from typing import Any

from recipes.quantities import exact
from recipes.spelling import spell, spell_text

_GATE = re.compile(
    r"^\s*(?P<metric>[^\s<>=]+)\s*(?P<op><=|>=|<|>)\s*(?P<value>\S+)(?:\s+stretch\s+(?P<stretch>\S+))?\s*$"
)
_WHOLE = re.compile(r"^[+-]?\d+$")


TEXT_OR_TABLES = "text or tables"
"""The kind of a text in whose place tables may stand, which are typed as one line of TOML."""


class NoValue:
    """The key is not in the file: the default applies."""


NO_VALUE = NoValue()


def show_value(value: Any) -> str:
    """A value on one line, from which `read_value` restores it; empty for no value."""
    if value is None or isinstance(value, NoValue):
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return exact(value)
    if isinstance(value, str):
        return value if _plain(value) else spell_text(value)
    if isinstance(value, (list, tuple)):
        return _show_list(list(value))
    if isinstance(value, dict):
        return spell(value)
    return str(value)


def read_value(text: str, kind: str) -> Any:
    """The value of typed text for a field of a kind; `NO_VALUE` for empty text, which removes the key.

    Args:
        text: one line, as typed.
        kind: the kind of a `FieldSpec`, or `TEXT_OR_TABLES`.
    """
    if kind == TEXT_OR_TABLES and isinstance(value := _toml(text.strip()), list):
        return value
    if kind in {"str", "choice", TEXT_OR_TABLES}:
        return _read_text(text)
    stripped = text.strip()
    if not stripped:
        return NO_VALUE
    if kind == "bool":
        return {"true": True, "false": False}.get(stripped.lower(), stripped)
    if kind in {"int", "float"}:
        return _read_number(stripped, kind)
    if kind == "tables":
        return _read_gates(stripped)
    if kind == "map":
        return _read_map(stripped)
    items = _read_list(stripped)
    if kind in {"numbers", "integers"} and isinstance(items, list):
        each = "int" if kind == "integers" else "float"
        return [_read_number(item, each) if isinstance(item, str) else item for item in items]
    return items


def same(one: Any, other: Any) -> bool:
    """Whether two values have the same type and are equal; NaN equals nothing, and true is not 1."""
    if isinstance(one, NoValue) or isinstance(other, NoValue):
        return isinstance(one, NoValue) and isinstance(other, NoValue)
    return type(one) is type(other) and bool(one == other)


def same_number(one: Any, other: Any) -> bool:
    """Whether both are numbers and equal: 1 and 1.0 are equal, true and 1 are not."""
    return _is_number(one) and _is_number(other) and bool(one == other)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _plain(text: str) -> bool:
    return bool(text) and text.isprintable() and text == text.strip() and not text.startswith('"')


def _read_text(text: str) -> Any:
    stripped = text.strip()
    if not stripped:
        return NO_VALUE
    if stripped.startswith('"') and stripped.endswith('"') and len(stripped) > 1:
        value = _toml(stripped)
        return value if isinstance(value, str) else stripped
    return stripped


def _read_number(text: str, kind: str) -> Any:
    compact = text.replace("_", "").replace(" ", "")
    if not compact.isascii():  # Python reads digits of every script, TOML does not
        return text
    if _WHOLE.match(compact) and len(compact) < 40 and kind != "float":
        return int(compact)
    try:
        number = float(compact)
    except ValueError:
        return text
    if kind == "int" and number.is_integer() and abs(number) < 1e18:
        return int(number)
    return number


def _read_list(text: str) -> Any:
    if text.startswith("["):
        value = _toml(text)
        return value if isinstance(value, list) else text
    parts = [part.strip() for part in text.split(",")]
    return [part for part in parts if part]


def _read_map(text: str) -> Any:
    """`name=word, name=word`, or an inline table."""
    if text.startswith("{"):
        value = _toml(text)
        return value if isinstance(value, dict) else text
    pairs = [part.partition("=") for part in text.split(",") if part.strip()]
    if not all(sign and name.strip() and word.strip() for name, sign, word in pairs):
        return text
    return {name.strip(): word.strip() for name, _, word in pairs}


def _read_gates(text: str) -> Any:
    gates = []
    for part in text.split(","):
        found = _GATE.match(part)
        if not found:
            return text
        gate: dict[str, Any] = {
            "metric": found["metric"],
            "op": found["op"],
            "value": _read_number(found["value"], "float"),
        }
        if found["stretch"]:
            gate["stretch"] = _read_number(found["stretch"], "float")
        gates.append(gate)
    return gates


def _show_list(items: list[Any]) -> str:
    if items and all(isinstance(item, dict) and {"metric", "op", "value"} <= set(item) for item in items):
        return ", ".join(_show_gate(item) for item in items)
    if items and all(isinstance(item, str) and _plain(item) and "," not in item and item[0] != "[" for item in items):
        return ", ".join(items)
    return spell(items)


def _show_gate(gate: dict[str, Any]) -> str:
    text = f"{gate['metric']} {gate['op']} {show_value(gate['value'])}"
    return text + (f" stretch {show_value(gate['stretch'])}" if gate.get("stretch") is not None else "")


def _toml(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}\n").get("value")
    except (tomllib.TOMLDecodeError, RecursionError):
        return None
