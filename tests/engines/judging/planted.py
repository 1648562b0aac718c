# ruff: noqa: E501, RUF001
"""Answers of which each check passes some and refuses the others: expected answer, settings, good ones, bad ones."""

from __future__ import annotations

import json
from typing import Any

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "pattern": "^[A-Z]"},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "uniqueItems": True},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
CALL = {"name": "weather", "arguments": {"city": "Oslo", "days": 2}}
SQUARE_TESTS = {"tests": ["assert square(3) == 9", "assert square(-2) == 4"]}
PLANTED: dict[str, tuple[str, dict[str, Any], list[str], list[str]]] = {
    "exact": (
        "Paris",
        {},
        ["Paris", "Paris\n", "  Paris", "\tParis", "Paris ", "\nParis\n", "Paris\r\n", " Paris ", "\n\n Paris", "Paris\t\n"],
        ["paris", "Paris.", "Par is", "", "Paris Paris", "PARIS", "Pariѕ", "\"Paris\"", "Paris\u200b", "Pari", "The answer is Paris"],
    ),
    "normalized": (
        "The Eiffel Tower",
        {},
        ["eiffel tower", "The  Eiffel\ntower!", "An EIFFEL tower", "Eiffel Tower", "the eiffel tower.", "Eiffel-Tower",
         "\"Eiffel Tower\"", "EIFFEL TOWER", "a Eiffel the Tower", "Ｅiffel Tower", "Eiffel, Tower?"],
        ["Eiffel", "Eiffel Tower in Paris", "", "Eiffeltower", "Tower Eiffel", "Eifel Tower", "Eiffel Towers", "Tower",
         "It is the Eiffel Tower", "Tour Eiffel", "the"],
    ),
    "contains": (
        "",
        {"texts": ["deploy", "rollback"]},
        ["first deploy, then rollback", "rollback/deploy", "deployrollback", "deploy rollback", "redeployed or rollbacks",
         "rollback\ndeploy", "deploy; no rollback", "the deploy and the rollback", "rollback deploy deploy", "(deploy)[rollback]"],
        ["deploy", "Deploy and Rollback", "", "rollback", "de ploy rollback", "DEPLOY ROLLBACK", "deploy roll back",
         "roll\nback deploy", "depl0y rollback", "undo"],
    ),
    "regex": (
        "",
        {"pattern": r"^\d{4}-\d\d-\d\d$"},
        ["2026-11-27", "2026-11-27\n", "0000-00-00", "9999-99-99", "1999-12-31", "2000-01-01", "1234-56-78", "2026-02-30",
         "1970-01-01", "2100-10-10"],
        ["2026-1-27", "on 2026-11-27", "", "2026-11-27\nx", "2026/11/27", "26-11-27", "2026-11-27 ", "2026-11", "x2026-11-27",
         "2026-11-271"],
    ),
    "number": (
        "6 + 6 = 12\n#### 1,234.50",
        {},
        ["1234.5", "It is $1,234.50.", "#### 1234.50 dollars, of 99", "1 and 2 make 1,234.5", "**1234.5**", "1.2345e3",
         "1,234.50 €", "\\boxed{1234.5}", "#### 1234.500", "= 1234.5", "99 - no: 1234.5"],
        ["1234", "-1234.5", "no number", "", "1234.5 and 7", "#### \n", "12345", "1234.51", "#### 9 or 1234.5", "1.234,50",
         "one thousand"],
    ),
    "choice": (
        "B",
        {"choices": ["Oslo", "Paris", "Rome", "Bern"]},
        ["B", "(B)", "B. Paris", "The answer is B.", "A is wrong, so the answer is **B**", "Paris", "It is Paris.",
         "Answer: (B)", "\\boxed{B}", "I think it is this one.\nB", "A? No. The answer is: B"],
        ["A", "The answer is A, not B", "", "Oslo or Paris", "Because of this", "C) Paris", "The answer is E",
         "answer is Bern", "D", "(C)", "I do not know"],
    ),
    "json": (
        "",
        {},
        ['{"a": 1}', "[]", "```json\n{\"a\": [1, 2]}\n```", " 7 ", "```\nnull\n```", "Here it is:\n```json\n1\n```", "true",
         '"text"', '{"a": {"b": [null, false, 1.5e3]}}', "\n[1,\n2]\n", '{"\\u00e9": "\\ud83d\\ude00"}'],
        ["{'a': 1}", '{"a": 1} and more', "", "{", "NaN", '{"a": 1, "a": 2}', "[" * 5000, "```json\n{\n```",
         "[" * 300 + "]" * 300, "9" * 5000, "[1,]", "{a: 1}", "True"],
    ),
    "json_schema": (
        "",
        {"schema": PERSON},
        ['{"name": "Ada", "age": 36}', '{"age": 36.0, "name": "Ada", "tags": ["a", "b"]}', '{"name": "A", "age": 0}',
         '{"name": "Ada", "age": 150}', '{"name": "Ada", "age": 1, "tags": []}', '{"name": "Ada", "age": 1, "tags": ["a"]}',
         '```json\n{"name": "Bo", "age": 2}\n```', '\n{"name":"Ada","age":3}\n', '{"name": "Åsa", "age": 3}'.replace("Å", "A"),
         '{"name": "Ada Lovelace", "age": 36, "tags": ["b", "a"]}', '{"name": "Z", "age": 1e1}'],
        ['{"name": "Ada"}', '{"name": "ada", "age": 3}', '{"name": "Ada", "age": "3"}', '{"name": "Ada", "age": true}',
         '{"name": "Ada", "age": 3, "x": 1}', '{"name": "Ada", "age": 151}', '{"name": "Ada", "age": 3.5}', "[]", "",
         '{"name": "Ada", "age": 3, "tags": ["a", "a"]}', '{"name": "Ada", "age": 3, "tags": ["c"]}'],
    ),
    "python": (
        "",
        {},
        ["x = 1", "Here:\n```python\ndef f():\n    return 1\n```\nDone.", "```py\npass\n```", "# only a comment", "import os",
         "lambda: 0", "class A: pass", "async def f(): await g()", "match x:\n    case 1: pass", "print('é')", "def f(): return\n"],
        ["def f(:", "```python\nreturn 1 +\n```", "", "This is prose.", "(" * 3000, "x = '\0'", "if True:\npass", "return 1",
         "x = = 1", "await f()", "print 'a'"],
    ),
    "tool_call": (
        json.dumps(CALL),
        {},
        [json.dumps(CALL), json.dumps([CALL]), f"<tool_call>\n{json.dumps(CALL)}\n</tool_call>",
         json.dumps({"arguments": {"days": 2.0, "city": "Oslo"}, "name": "weather"}),
         json.dumps({"type": "function", "function": {"name": "weather", "arguments": json.dumps(CALL["arguments"])}}),
         f"[TOOL_CALLS]{json.dumps([CALL])}", f"```json\n{json.dumps(CALL)}\n```", f"<|python_tag|>{json.dumps(CALL)}",
         json.dumps({"name": "weather", "parameters": CALL["arguments"]}), f"\n {json.dumps(CALL, indent=2)} ",
         json.dumps({**CALL, "id": "call_1"})],
        ["", "I call weather(Oslo)", json.dumps({**CALL, "name": "time"}), json.dumps([CALL, CALL]),
         json.dumps({"name": "weather", "arguments": {"city": "Oslo"}}),
         json.dumps({"name": "weather", "arguments": {"city": "Oslo", "days": "2"}}),
         f"Sure! {json.dumps(CALL)}", '{"name": "weather", "arguments": "{"}', "[" * 5000,
         json.dumps({"name": "weather", "arguments": {"city": "Oslo", "days": 2, "x": 1}}), json.dumps({**CALL, "name": "Weather"})],
    ),
    "unit_tests": (
        "",
        SQUARE_TESTS,
        ["def square(x):\n    return x * x", "```python\ndef square(x):\n    return x ** 2\n```", "square = lambda x: x * x",
         "Sure:\n```py\ndef square(x): return x * x\n```\nIt squares.", "import math\ndef square(x): return int(math.pow(x, 2))",
         "def square(x):\n    total = 0\n    for _ in range(abs(x)): total += abs(x)\n    return total",
         "from operator import mul\ndef square(x): return mul(x, x)", "class square(int):\n    def __new__(cls, x): return x * x",
         "def square(x): print('x' * 100); return x * x", "def square(x): return float(x * x)",
         "def square(x, *more): return x * x\nif __name__ == '__main__':\n    input()"],
        ["def square(x):\n    return x * 2", "", "def square(x) return x", "This squares a number.", "def cube(x): return x ** 3",
         "def square(x): raise ValueError(x)", "import os\nos._exit(0)", "def square(x): return str(x * x)",
         "class A(int):\n    def __eq__(self, o): return True\ndef square(x): return A(1)", "def square(x): return x * x if x > 0 else x",
         "import numpy\ndef square(x): return x * x", "square = 9"],
    ),
    "command": (
        "abc",
        {},
        ["cba", "CBA", " cba", "cba ", "c b a", "cba\n", "Cba", "cBa", "cb a", "\tcba"],
        ["abc", "", "cb", "cbaa", "abc cba", "xcba", "cba.", "bca", "c-b-a", "cbа"],
    ),
}  # fmt: skip
