"""The rooms of each floor: none is crowded, each says its job, and the picture of them is the order that imports have.

That imports go one way is held by the contracts in pyproject.toml; `tests/test_import_contracts.py` breaks each.
"""

from __future__ import annotations

import ast
import re
import tomllib
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FLOORS = ("cockpit", "engines", "exporters", "recipes")
MOST_MODULES = 20
"""More than a newcomer looks through. A folder that grows beyond it is two rooms."""


def order_of_cockpit() -> dict[str, int]:
    """The layer of each room and file of `cockpit/`, 0 on top, as the contract has it."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["id"] == "rooms-of-cockpit")
    return {room: number for number, layer in enumerate(layers) for room in layer.split(" | ")}


def folders() -> list[Path]:
    return sorted({path.parent for floor in FLOORS for path in (ROOT / floor).rglob("*.py")})


def test_no_folder_has_more_modules_than_can_be_surveyed() -> None:
    files = (path for folder in folders() for path in folder.glob("*.py") if path.name != "__init__.py")
    counts = Counter(str(path.parent.relative_to(ROOT)) for path in files)
    assert {folder: number for folder, number in counts.items() if number > MOST_MODULES} == {}


def test_every_folder_says_what_it_is_for() -> None:
    doors = {str(folder.relative_to(ROOT)): folder / "__init__.py" for folder in folders()}
    silent = [
        name for name, door in doors.items() if not door.is_file() or not ast.get_docstring(ast.parse(door.read_text()))
    ]
    assert silent == []


def test_the_picture_in_the_architecture_page_has_the_order_of_the_contract() -> None:
    picture = (ROOT / "ARCHITECTURE.md").read_text().partition("## Rooms")[2].split("```")[1]
    drawn = re.findall(r"[a-z_]+", next(line for line in picture.splitlines() if "text" in line))
    place = order_of_cockpit()
    assert [place[room] for room in drawn] == sorted(place[room] for room in drawn)
    assert place.keys() - set(re.findall(r"[a-z_]+", picture)) == {"__main__", "man"}
