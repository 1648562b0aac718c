"""Files are written whole, hashed and read through `engines/files.py`, wherever somebody else may have made them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("recipes", "engines", "exporters", "cockpit")
DOOR = "engines/files.py"
BY_HAND = frozenset({"fsync", "file_digest", "read_text", "read_bytes"})
ALLOWED = {
    "recipes/toml_read.py": "is below engines; bounded, and looks at what the path is",
    "recipes/reference.py": "our own pages, which it also writes",
    "cockpit/headless/machine_line.py": "/proc",
    "cockpit/models/pull.py": "syncs the part of a download that it has open and locked",
    "cockpit/supervision/engine_watch.py": "/proc",
    "cockpit/supervision/memory_kills.py": "/proc and /sys",
    "cockpit/supervision/shared_cores.py": "/proc",
    "cockpit/models/hub_replies.py": "/proc",
    "cockpit/launching/installing.py": "our own checkout and package",
    "cockpit/provenance/mark.py": "/proc",
    "engines/chat/worker.py": "/proc",
    "engines/chatting/manners.py": "/proc",
    "engines/data/messages.py": "files that it wrote itself",
    "engines/identity.py": "/proc",
    "engines/judging/sandbox/host.py": "/proc; Python's library alone",
    "engines/judging/sandbox/sandbox.py": "/proc",
    "engines/llama/logits_worker.py": "/proc",
    "engines/processor.py": "/proc",
    "engines/ranks/children.py": "/proc",
    "exporters/process/room.py": "/proc and /sys",
    "exporters/proof/parity_data.py": "Python's own library",
}


def by_hand(tree: ast.AST) -> Iterator[str]:
    """Calls that have a door of their own: reading a whole file, opening one for reading, hashing, and syncing."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            texts = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
            if node.func.attr in BY_HAND or (node.func.attr == "open" and texts[:1] in (["rb"], ["r"])):
                yield node.func.attr
            if node.func.attr == "open" and not node.args and isinstance(node.func.value, ast.Name):
                yield "open"


def test_no_module_opens_hashes_or_syncs_files_by_hand() -> None:
    found = {
        path.relative_to(ROOT).as_posix()
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*.py")
        if any(by_hand(ast.parse(path.read_text(encoding="utf-8"))))
    }
    assert found - {DOOR} == set(ALLOWED), "use engines.files, or say here why not"


@pytest.mark.parametrize(
    "line",
    [
        "os.fsync(file.fileno())",
        'hashlib.file_digest(file, "sha256")',
        "path.read_text()",
        'path.open("rb")',
        'path.open(encoding="utf-8")',
    ],
)
def test_a_file_that_is_opened_by_hand_is_found(line: str) -> None:
    assert list(by_hand(ast.parse(line)))


@pytest.mark.parametrize("line", ['path.open("wb")', "open_regular(path)", "read_json(path)"])
def test_a_door_and_a_file_that_is_written_are_no_reading_by_hand(line: str) -> None:
    assert not list(by_hand(ast.parse(line)))
