"""The rooms of each floor: imports go one way, and no folder grows beyond what a newcomer can survey."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MOST_MODULES = 20

# From top to bottom, by floor. A room may import what stands in a later place; rooms of one place know nothing of each other.
ORDER: dict[str, tuple[tuple[str, ...], ...]] = {
    "cockpit": (
        ("__main__", "man"),
        ("cli",),
        ("commands", "tui"),
        ("command_line", "forms", "headless"),
        ("one_stage",),
        ("supervision",),
        ("planning",),
        ("runs",),
        ("text",),
    ),
    "exporters": (
        ("stages",),
        ("proof", "quantize"),
        ("ternary",),
        ("gguf",),
        ("lora",),
        ("hf_model",),
    ),
    "engines": (
        ("evaluate", "fake", "finetune", "pretrain", "tokenizer"),
        ("data", "llama"),
        ("training",),
    ),
}


def imported(source: str) -> set[str]:
    """Modules that a module names in its imports, wherever they stand in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def wrong_ways(floor: str, files: dict[str, str]) -> list[str]:
    """Imports that go to an upper room, or to another one of the same place; `files` is source by path from the root."""
    place = {room: number for number, rooms in enumerate(ORDER[floor]) for room in rooms}
    wrong = []
    for path, source in files.items():
        here = path.split("/")[1].removesuffix(".py")
        for module in sorted(imported(source)):
            parts = module.split(".")
            if len(parts) < 2 or parts[0] != floor or here not in place or parts[1] not in place or parts[1] == here:
                continue
            if place[parts[1]] <= place[here]:
                wrong.append(f"{path} imports {module}")
    return wrong


def sources(floor: str) -> dict[str, str]:
    return {str(path.relative_to(ROOT)): path.read_text() for path in sorted((ROOT / floor).rglob("*.py"))}


@pytest.mark.parametrize("floor", ORDER)
def test_rooms_point_down(floor: str) -> None:
    assert wrong_ways(floor, sources(floor)) == []


@pytest.mark.parametrize("floor", ORDER)
def test_every_room_has_its_place(floor: str) -> None:
    rooms = {path.parent.name for path in (ROOT / floor).glob("*/__init__.py")}
    assert rooms <= {room for rooms in ORDER[floor] for room in rooms}


def test_an_import_that_goes_up_is_found_even_inside_a_function() -> None:
    up = "def f():\n    from cockpit.supervision.launch import launch\n"
    assert wrong_ways("cockpit", {"cockpit/runs/state.py": up}) == [
        "cockpit/runs/state.py imports cockpit.supervision.launch",
        "cockpit/runs/state.py imports cockpit.supervision.launch.launch",
    ]
    assert wrong_ways("cockpit", {"cockpit/supervision/wait.py": "import cockpit.runs.state"}) == []
    assert wrong_ways("engines", {"engines/fake/stage.py": "import engines.pretrain.model"}) != []


def test_the_picture_in_the_architecture_page_has_this_order() -> None:
    picture = (ROOT / "ARCHITECTURE.md").read_text().partition("## Rooms")[2].split("```")[1]
    chain = next(line for line in picture.splitlines() if "text" in line)
    drawn = re.findall(r"[a-z_]+", chain)
    place = {room: number for number, rooms in enumerate(ORDER["cockpit"]) for room in rooms}
    assert [place[room] for room in drawn] == sorted(place[room] for room in drawn)
    assert {room for rooms in ORDER["cockpit"] for room in rooms} - set(re.findall(r"[a-z_]+", picture)) <= {
        "__main__",
        "man",
    }


@pytest.mark.parametrize("floor", ["cockpit", "engines", "exporters", "recipes"])
def test_no_folder_has_more_modules_than_can_be_surveyed(floor: str) -> None:
    folders = {path.parent for path in (ROOT / floor).rglob("*.py")}
    count = {str(folder.relative_to(ROOT)): len([*folder.glob("[!_]*.py")]) for folder in folders}
    assert {folder: number for folder, number in count.items() if number > MOST_MODULES} == {}
