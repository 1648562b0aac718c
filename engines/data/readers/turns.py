"""One turn of a conversation, in the forms of OpenAI, TRL and ShareGPT, as a `Message`.

Each key is understood, ignored because the recipe says so, or refused by name: a key that is dropped in silence may be
the one that says what to learn.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from engines.data.readers.bad_row import BadRowError
from engines.data.readers.json_values import parse_row
from engines.data.readers.row import Message
from recipes.problems import printable

ROLE_NAMES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant",
    "function_call": "assistant",
    "tool": "tool", "observation": "tool", "function_response": "tool", "function": "tool",
}  # fmt: skip
"""Roles by the names that data uses."""
_CALLS = "function_call"
"""The name of an assistant's turn whose text is a call as JSON."""
_PLAIN_ROLES = frozenset(ROLE_NAMES) - {_CALLS}
_KEYS = frozenset(
    {"role", "from", "content", "value", "reasoning_content", "tool_calls", "tool_call_id", "name", "weight"}
)
_NAMES = {"from": "role", "value": "content"}
IGNORE_HINT = 'to leave it out on purpose, set ignore_keys = ["{key}"]'


def turns_of(value: Any, name: str, ignored: Collection[str]) -> list[Message]:
    """The turns of a list; `name` is its key, for messages.

    Raises:
        BadRowError: it is not a list of turns, or a turn has a key or a value that is not understood.
    """
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = _parsed(value, name)  # a list in a column of text
    if isinstance(value, dict) and value and all(isinstance(column, list) for column in value.values()):
        value = _turns_of_columns(value, name)
    if not isinstance(value, list):
        raise wrong_type(name, value, "a list of turns")
    return [turn_of(item, f"{name}[{place}]", ignored) for place, item in enumerate(value)]


def _turns_of_columns(value: Mapping[str, list[Any]], name: str) -> list[dict[str, Any]]:
    """Turns from one list per key, as older tables of `datasets` have them."""
    if len({len(column) for column in value.values()}) != 1:
        raise BadRowError(f"{name} — its lists have different lengths", f"{name} has the wrong type")
    return [dict(zip(value, items, strict=True)) for items in zip(*value.values(), strict=True)]


def after_system(value: Mapping[str, Any], turns: list[Message]) -> list[Message]:
    """The turns of a row after the text of its key `system`, if it has one.

    Raises:
        BadRowError: the turns begin with a system turn too.
    """
    system = text_of(value, "system")
    if system and turns and turns[0].role == "system":
        raise BadRowError("the row has system and a system turn", hint="keep one of the two")
    return [Message("system", system), *turns] if system else turns


def turn_of(value: Any, name: str, ignored: Collection[str]) -> Message:
    """One turn; `name` says where it is in its row.

    Raises:
        BadRowError: as `turns_of`.
    """
    if type(value) is not dict:
        raise wrong_type(name, value, 'a turn such as {"role": "user", "content": "…"}')
    if len(value) == 2:  # nearly all turns of nearly all data
        role, content = value.get("role") or value.get("from"), value.get("content") or value.get("value")
        if type(content) is str and type(role) is str and role in _PLAIN_ROLES:
            return Message(ROLE_NAMES[role], checked(content, name))
    return _unusual_turn({key: item for key, item in value.items() if item is not None and key not in ignored}, name)


def _unusual_turn(value: dict[str, Any], name: str) -> Message:
    for key in value:
        if key not in _KEYS:
            raise BadRowError(
                f"{name}.{printable(key, 60)} — Cockpit does not know this key of a turn",
                f"a turn has the key {printable(key, 60)}",
                IGNORE_HINT.format(key=printable(key, 60)),
            )
        if key in _NAMES and _NAMES[key] in value:
            raise BadRowError(f"{name} has both {key} and {_NAMES[key]}", "a turn has two names for one thing")
    given = value.get("role", value.get("from"))
    role = ROLE_NAMES.get(given.lower()) if isinstance(given, str) else None
    if role is None:
        got = printable(str(given), 40)
        raise BadRowError(
            f"{name} — role — got {got!r}; allowed {', '.join(dict.fromkeys(ROLE_NAMES.values()))}", "an unknown role"
        )
    content = content_of(value.get("content", value.get("value")), name)
    calls = tool_calls_of(value.get("tool_calls"), name)
    if given == _CALLS:
        content, calls = "", tool_calls_of(_parsed(content, name), name)
    return Message(
        role=role,
        content=content,
        reasoning_content=text_of(value, "reasoning_content", name),
        tool_calls=calls,
        tool_call_id=text_of(value, "tool_call_id", name),
        name=text_of(value, "name", name),
        weight=_weight(value.get("weight", 1), name, role),
    )


def content_of(value: Any, name: str) -> str:
    """The text of a content: itself, nothing for none, or the joined texts of its parts.

    Raises:
        BadRowError: it is neither, or a part is not text.
    """
    if value is None:
        return ""
    if isinstance(value, str):
        return checked(value, name)
    if isinstance(value, list):
        return "".join(_part(item, f"{name}.content[{place}]") for place, item in enumerate(value))
    raise wrong_type(f"{name}.content", value, "text, or a list of parts of type text")


def _part(value: Any, name: str) -> str:
    if isinstance(value, Mapping):
        filled = {key: item for key, item in value.items() if item is not None}
        if filled.keys() == {"type", "text"} and filled["type"] in ("text", "input_text", "output_text"):
            return checked(filled["text"], name) if isinstance(filled["text"], str) else content_of(filled, name)
        kind = printable(str(filled.get("type", "no type")), 40)
        raise BadRowError(
            f"{name} — a part of type {kind}; only parts of type text are supported",
            f"a part of type {kind}",
            "leave such rows out, or train a text of their place",
        )
    raise wrong_type(name, value, 'a part such as {"type": "text", "text": "…"}')


def tool_calls_of(value: Any, name: str) -> list[dict[str, Any]]:
    """Tool calls in OpenAI's form, with arguments as an object; from that form, from bare calls, or from one call.

    Raises:
        BadRowError: a call has no name, arguments that are not an object, or an unknown key.
    """
    if value is None or value == []:
        return []
    if isinstance(value, str):
        value = _parsed(value, f"{name}.tool_calls")
    calls = value if isinstance(value, list) else [value]
    return [_call(item, f"{name}.tool_calls[{place}]") for place, item in enumerate(calls)]


def _call(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise wrong_type(name, value, 'a call such as {"name": "…", "arguments": {…}}')
    outer = {key: item for key, item in value.items() if item is not None}
    inner = outer.pop("function", None)
    call = {key: item for key, item in (inner if isinstance(inner, dict) else outer).items() if item is not None}
    rest = outer if isinstance(inner, dict) else {}
    if not isinstance(inner, dict):
        rest = {key: call.pop(key) for key in ("id", "type", "index") if key in call}
    unknown = [key for key in rest if key not in {"id", "type", "index"}]
    unknown += [key for key in call if key not in {"name", "arguments", "parameters"}]
    if unknown or rest.get("type", "function") != "function":
        what = f"the key {printable(unknown[0], 60)}" if unknown else f"type {printable(str(rest['type']), 40)}"
        raise BadRowError(f"{name} — a call with {what} is not supported", "a tool call of another form")
    called, arguments = call.get("name"), call.get("arguments", call.get("parameters", {}))
    if not isinstance(called, str) or not called:
        raise BadRowError(f"{name} — the call has no name", "a tool call without a name")
    if isinstance(arguments, str):
        arguments = _parsed(arguments, f"{name}.arguments") if arguments.strip() else {}
    if not isinstance(arguments, dict):
        raise wrong_type(f"{name}.arguments", arguments, "an object, or its JSON text")
    function = {"name": called, "arguments": arguments}
    found: dict[str, Any] = {"type": "function", "function": function}
    return {"id": str(rest["id"]), **found} if rest.get("id") else found


def tools_of(value: Any, name: str = "tools") -> list[dict[str, Any]]:
    """The functions that a row offers, in OpenAI's form; from a list, its JSON text, or schemas without the frame.

    Raises:
        BadRowError: it is no such list.
    """
    if value is None or value == "" or value == []:
        return []
    if isinstance(value, str):
        value = _parsed(value, name)
    if not isinstance(value, list):
        raise wrong_type(name, value, "a list of functions, or its JSON text")
    found = []
    for place, item in enumerate(value):
        tool = without_none(item)
        schema = tool.get("function", tool) if isinstance(tool, dict) else None
        if not isinstance(schema, dict) or not isinstance(schema.get("name"), str):
            raise wrong_type(f"{name}[{place}]", item, 'a function such as {"name": "…", "parameters": {…}}')
        found.append({"type": "function", "function": schema})
    return found


def without_none(value: Any) -> Any:
    """A value without the keys whose value is None, which a table of typed columns adds to every object."""
    if isinstance(value, dict):
        return {key: without_none(item) for key, item in value.items() if item is not None}
    return [without_none(item) for item in value] if isinstance(value, list) else value


def text_of(value: Mapping[str, Any], key: str, name: str = "") -> str:
    """The text at a key; empty without one.

    Raises:
        BadRowError: it is something else.
    """
    found = value.get(key)
    if found is None:
        return ""
    where = f"{name}.{key}" if name else key
    if not isinstance(found, str):
        raise wrong_type(where, found, "text")
    return checked(found, where)


def word_of(value: Any, name: str) -> str:
    """An identifying word: text, or a whole number as text; empty for none.

    Raises:
        BadRowError: it is something else.
    """
    if value is None:
        return ""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, float) and value.is_integer():  # whole numbers of a table that has gaps
        return str(int(value))
    if not isinstance(value, str):
        raise wrong_type(name, value, "text or a whole number", ignore=name)
    return checked(value, name)


def checked(text: str, name: str) -> str:
    """A text that UTF-8 can express.

    Raises:
        BadRowError: it contains half of a surrogate pair, which no tokenizer takes.
    """
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            what = f"{name} contains half of a surrogate pair (\\u{ord(text[error.start]):04x})"
            raise BadRowError(what, "half of a surrogate pair") from error
    return text


def wrong_type(name: str, value: Any, allowed: str, ignore: str = "") -> BadRowError:
    """The problem of a value of the wrong type; `ignore`: a key that may be ignored."""
    words = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "nothing"}
    kind = words.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)
    shown = f" {printable(repr(value), 60)}" if isinstance(value, str | int | float) else ""
    key = name.rpartition(".")[2].partition("[")[0]
    hint = IGNORE_HINT.format(key=ignore) if ignore else ""
    return BadRowError(f"{name} — got {kind}{shown}; allowed {allowed}", f"{key} has the wrong type", hint)


def _parsed(text: str, name: str) -> Any:
    try:
        return parse_row(text)
    except BadRowError as error:
        raise BadRowError(f"{name} — {error.what}", error.reason, error.hint) from error


def _weight(value: Any, name: str, role: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or value not in (0, 1):
        raise BadRowError(
            f"{name}.weight — got {printable(str(value), 40)}; allowed 0 and 1",
            "a weight between 0 and 1",
            IGNORE_HINT.format(key="weight"),
        )
    return float(value) if role == "assistant" else 1.0
