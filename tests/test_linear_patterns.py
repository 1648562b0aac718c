"""Every pattern that may see text from outside takes time in proportion to it.

A pattern that backtracks would need hours for these texts: the process would not end within the patience of a test.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from tests.patience import PATIENCE_S

ROOT = Path(__file__).resolve().parents[1]
COMPILED = re.compile(r"^(\w+) = (?:\(?re\.compile\(|\(re\.compile)", re.MULTILINE)
TRY = """
import importlib, json, sys
SIZE = 100_000
FRAGMENTS = [
    "a", " ", "1", "\\n", "\\t", ",", "<|", "<|a", "{%", "{%-", "{% generation", "a.", ".base_layer", "1,", "1, ", "[ ",
    "[", '"', '\\\\"', "'", "''", "-", "a-", '{"v":1,"w":', "a:", "a < ", "\\u202e", "0" * 13, "#", "# ", "version: ",
    "build = 1 (", "/", "x/y", "\\x00", "\\r",
]
tried = 0
for module, name, methods in json.loads(sys.stdin.read()):
    found = getattr(importlib.import_module(module), name)
    for pattern in found if isinstance(found, tuple) else [found]:
        for fragment in FRAGMENTS:
            for end in ("", "!", "\\n", "]"):
                text = fragment * (SIZE // len(fragment)) + end
                subject = text.encode() if isinstance(pattern.pattern, bytes) else text
                for method in methods:
                    got = getattr(pattern, method)(*(["", subject] if method == "sub" else [subject]))
                    if method == "finditer":
                        for _ in got:
                            pass
                    tried += 1
print(tried)
"""


def patterns() -> list[tuple[str, str, list[str]]]:
    """Module, name and used methods of every pattern of the product."""
    found = []
    for package in ("cockpit", "engines", "exporters", "recipes"):
        for path in sorted((ROOT / package).rglob("*.py")):
            text = path.read_text()
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            for name in COMPILED.findall(text):
                methods = sorted(set(re.findall(rf"\b{name}\.(search|match|fullmatch|findall|finditer|sub)\(", text)))
                found.append((module, name, methods or ["search"]))
    return found


def test_no_pattern_backtracks() -> None:
    known = patterns()
    assert len(known) > 20
    done = subprocess.run(
        [sys.executable, "-c", TRY], input=json.dumps(known), capture_output=True, text=True, timeout=PATIENCE_S,
        cwd=ROOT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) > 1000
