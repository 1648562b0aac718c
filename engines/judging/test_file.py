"""Test files: one task a row, as JSON Lines or a JSON array. Every row is checked before a model is asked.

A row has a prompt, and what the checks need:

- prompt: `messages` (without the answer), or `prompt`, `question`, `instruction` (with `input`) or `text`; `system`
- expected answer: `answer`, `expected`, `output`, `completion`, or the assistant's last turn of `messages`
- checks: `checks`, a list of names or of objects with `kind` and settings; without it those that the file's keys name
  (`schema`, `pattern`, `choices`, `calls`; unit tests by `tests`, HumanEval's `test` with `entry_point`, MBPP's
  `test_list`), else those that the caller names
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from engines.data.readers.lines import CONVERT, encoding_of, opened
from engines.json_text import parse_json
from engines.judging.checks import Judges, check_problem
from engines.judging.task import Check, Message, Task, prompt_key
from engines.judging.unit_tests import UNIT_TESTS, has_unit_tests, settings_of
from recipes import quantities
from recipes.problems import OperatorError, printable

MAX_ROW_BYTES = 16 * 1024 * 1024
MAX_FILE_BYTES = 1024**3
MAX_ROWS = 1_000_000
SHOWN_PROBLEMS = 20
_PROMPTS = ("prompt", "question", "instruction", "text")
_EXPECTED = ("answer", "expected", "output", "completion")
_ROLES = ("system", "developer", "user", "assistant", "tool")
DEFAULTS_WITH_SETTING = ("regex", "json_schema")
_BY_KEY = {
    "schema": "json_schema",
    "pattern": "regex",
    "choices": "choice",
    "calls": "tool_call",
}
"""Keys of a row that name a check, which takes their value."""


def default_check(text: str) -> Check:
    """A check of rows that name none, by its name; `regex=PATTERN` and `json_schema=JSON` have their setting.

    Raises:
        OperatorError: the setting is not JSON.
    """
    kind, given, value = text.partition("=")
    if not given or kind not in DEFAULTS_WITH_SETTING:
        return Check(text)
    if kind == "regex":
        return Check(kind, {"pattern": value})
    try:
        return Check(kind, {"schema": parse_json(value.encode())})
    except ValueError as error:
        raise OperatorError(f"json_schema — not JSON: {printable(str(error), 200)}", "give a JSON Schema") from error


def read_tests(file: Path, default_checks: Sequence[str], judges: Judges) -> list[Task]:
    """The tasks of a test file.

    Args:
        file: JSON Lines, or one JSON array; packed if its name ends with .gz.
        default_checks: checks of rows that name none; see `default_check`.
        judges: what will judge the answers.

    Raises:
        OperatorError: the file cannot be read, has no rows, or rows that cannot be used: all of them are named; or it
            has unit tests, and this machine cannot confine programs.
    """
    tasks, problems, seen = [], [], Counter[str]()
    defaults = [default_check(text) for text in default_checks]
    for where, value in _rows(file):
        try:
            task = _task(where, value, defaults, judges)
        except ValueError as error:
            problems.append(f"{where}  {error}")
            continue
        seen[task.key] += 1
        tasks.append(task if seen[task.key] == 1 else _repeated(task, seen[task.key]))
    _refuse(file, tasks, problems)
    if judges.programs is not None and any(has_unit_tests(task) for task in tasks):
        judges.programs.require()
    return tasks


def read_prompts(file: Path) -> list[Task]:
    """The prompts of a test file, as tasks without checks.

    Raises:
        OperatorError: the file cannot be read, has no rows, or rows without a prompt: all of them are named.
    """
    tasks, problems, seen = [], [], Counter[str]()
    for where, value in _rows(file):
        try:
            row = _object(value)
            messages, _ = _messages(row)
            tools = tuple(_tools(row))
        except ValueError as error:
            problems.append(f"{where}  {error}")
            continue
        task = Task(prompt_key(messages, tools), where, messages, "", (), tools)
        seen[task.key] += 1
        tasks.append(task if seen[task.key] == 1 else _repeated(task, seen[task.key]))
    _refuse(file, tasks, problems)
    return tasks


def _refuse(file: Path, tasks: Sequence[Task], problems: Sequence[str]) -> None:
    if problems:
        more = len(problems) - SHOWN_PROBLEMS
        text = "\n".join(problems[:SHOWN_PROBLEMS]) + (f"\nand {more} more rows" if more > 0 else "")
        raise OperatorError(f"{len(problems)} rows of the test file cannot be used:\n{text}", "correct these rows")
    if not tasks:
        raise OperatorError(f"{printable(str(file), 400)} has no rows", "give a file with one JSON object a line")


def _repeated(task: Task, number: int) -> Task:
    return Task(
        f"{task.key}.{number}",
        task.where,
        task.messages,
        task.expected,
        task.checks,
        task.tools,
        task.name,
    )


def _rows(file: Path) -> Iterator[tuple[str, Any]]:
    """Place and value of each row."""
    name = printable(str(file), 400)
    with opened(file) as content:
        data = content.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise OperatorError(f"{name} is larger than {quantities.size(MAX_FILE_BYTES)}", "divide it into several files")
    data = _utf8(name, data)
    if data.lstrip()[:1] == b"[":
        try:
            values = parse_json(data)
        except ValueError as error:
            raise OperatorError(f"{name} is not JSON: {printable(str(error), 200)}") from error
        yield from ((f"{name}, row {number}", value) for number, value in enumerate(values, start=1))
        return
    count = 0
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip():
            continue
        count += 1
        if count > MAX_ROWS:
            raise OperatorError(f"{name} has more than {MAX_ROWS} rows", "divide it into several files")
        yield f"{name}:{number}", line if len(line) > MAX_ROW_BYTES else _parsed(line)


def _utf8(name: str, data: bytes) -> bytes:
    """The file's text in UTF-8, without a byte-order mark. UTF-16 and UTF-32 are recognised, as in training data.

    Raises:
        OperatorError: it is in another encoding, which only the person who wrote it knows, or damaged.
    """
    encoding, mark = encoding_of(data[:4], None)
    data = data[mark:]
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise OperatorError(*_not_text(name, error, encoding)) from error
    return data if encoding == "utf-8" else text.encode()


def _not_text(name: str, error: UnicodeDecodeError, encoding: str) -> tuple[str, str]:
    """What a file is whose bytes are not in the encoding that its first bytes say, and what to do."""
    shown, byte = encoding.upper(), error.object[error.start]
    if encoding != "utf-8":
        what = f"{name} begins as {shown} text and is not: at byte {error.start + 1}, {error.reason}"
        return what, "write the file again, as UTF-8"
    line = error.object.count(b"\n", 0, error.start) + 1
    what = f"{name}:{line}  the file is not UTF-8 text: byte 0x{byte:02x}, byte {error.start + 1} of the file"
    return what, f"correct this line, or {CONVERT}"


def _parsed(line: bytes) -> Any:
    try:
        return parse_json(line)
    except ValueError as error:
        return error


def _task(where: str, row: Any, default_checks: Sequence[Check], judges: Judges) -> Task:
    """One row as a task.

    Raises:
        ValueError: it cannot be used; the text says why.
    """
    row = _object(row)
    messages, answered = _messages(row)
    expected = _expected(row, answered)
    tools = _tools(row)
    checks = _checks(row, default_checks)
    if not checks:
        raise ValueError("the row names no check, and no check is given for the whole file")
    bad = next((bad for bad in (check_problem(check, expected, judges) for check in checks) if bad), "")
    if bad:
        raise ValueError(bad)
    name = row.get("id", row.get("task_id", row.get("name", "")))
    return Task(
        prompt_key(messages, tuple(tools)),
        where,
        messages,
        expected,
        tuple(checks),
        tuple(tools),
        printable(str(name), 100) if isinstance(name, str | int) else "",
    )


def _object(row: Any) -> dict[str, Any]:
    if isinstance(row, bytes):
        raise ValueError(f"the row is longer than {quantities.size(MAX_ROW_BYTES)}")
    if isinstance(row, ValueError):
        raise ValueError(f"not JSON: {printable(str(row), 120)}")
    if not isinstance(row, dict):
        raise ValueError(f"not a JSON object; got {printable(json.dumps(row), 60)}")
    try:
        json.dumps(row, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        half = ascii(error.object[error.start])[1:-1]
        raise ValueError(f"a text has {half}, half of a surrogate pair, which is not a character") from error
    return row


def _tools(row: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    tools = row.get("tools") or []
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise ValueError("tools are not a list of JSON schemas of functions")
    return tools


def _messages(row: Mapping[str, Any]) -> tuple[tuple[Message, ...], str]:
    """The turns before the answer, and the answer that `messages` ends with."""
    if "messages" in row:
        turns = _turns(row["messages"])
        answered = turns[-1]["content"] if turns[-1]["role"] == "assistant" else ""
        before = turns[:-1] if answered else turns
        if not before:
            raise ValueError("messages have no turn before the answer")
        return tuple(before), answered
    key = next((key for key in _PROMPTS if isinstance(row.get(key), str) and row[key].strip()), None)
    if key is None:
        raise ValueError(f"no prompt; allowed messages, or a text in {', '.join(_PROMPTS)}")
    text = row[key]
    if key == "instruction" and isinstance(row.get("input"), str) and row["input"].strip():
        text = f"{text}\n{row['input']}"
    turns = [{"role": "user", "content": text}]
    if isinstance(row.get("system"), str) and row["system"]:
        turns.insert(0, {"role": "system", "content": row["system"]})
    return tuple(turns), ""


def _turns(given: Any) -> list[dict[str, Any]]:
    if not isinstance(given, list) or not given:
        raise ValueError("messages are not a list of turns")
    for number, turn in enumerate(given, start=1):
        if not isinstance(turn, dict) or turn.get("role") not in _ROLES:
            raise ValueError(f"turn {number} of messages has no role of {', '.join(_ROLES)}")
        if not isinstance(turn.get("content", ""), str | None):
            raise ValueError(f"turn {number} of messages has a content that is no text")
    return [{**turn, "content": turn.get("content") or ""} for turn in given]


def _expected(row: Mapping[str, Any], answered: str) -> str:
    found = next((row[key] for key in _EXPECTED if row.get(key) is not None), answered)
    if isinstance(found, str):
        return found
    return str(found) if isinstance(found, int | float) and not isinstance(found, bool) else json.dumps(found)


def _checks(row: Mapping[str, Any], default_checks: Sequence[Check]) -> list[Check]:
    given = row.get("checks", row.get("check"))
    if given is not None:
        return [_check(one, row) for one in (given if isinstance(given, list) else [given])]
    named = [_named(kind, row) for key, kind in _BY_KEY.items() if key in row]
    unit_tests = settings_of(row)
    if unit_tests is not None:
        named.append(Check(UNIT_TESTS, unit_tests))
    return named or [one if one.settings else _named(one.kind, row) for one in default_checks]


def _check(given: Any, row: Mapping[str, Any]) -> Check:
    if isinstance(given, str):
        return _named(given, row)
    if isinstance(given, dict) and isinstance(given.get("kind"), str):
        return Check(given["kind"], {key: value for key, value in given.items() if key != "kind"})
    raise ValueError("a check is neither a name nor an object with kind")


def _named(kind: str, row: Mapping[str, Any]) -> Check:
    """A check by its name, with the settings that the row's own keys are."""
    if kind == UNIT_TESTS:
        return Check(kind, settings_of(row) or {})
    return Check(kind, {key: row[key] for key, of in _BY_KEY.items() if of == kind and key in row})
