"""What the documents promise exists: commands parse, files and links are there, lists are those of the registries."""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import shlex
import tomllib
from pathlib import Path

import pytest

import cockpit
from cockpit.cli import ENVIRONMENT, build_parser
from cockpit.tui.look.keys import SCOPES
from engines.words import ExitCode, RunStatus, Verb
from recipes.fields import fields_of
from recipes.load import load_recipe_text
from recipes.stages.registry import STAGE_KINDS

SCREENS = ("app", "home", "recipe", "run", "replay", "checkpoints", "rows", "chat", "blind", "answers", "lists")
"""The scopes of keys, in the order of their page."""
ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
ADDING = [name for name in NAMES if name.startswith("docs/adding/") and not name.endswith("README.md")]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = ("cockpit", "engines", "exporters", "recipes")
TOP = "cockpit|engines|exporters|recipes|tests|bench|screenshots|docs"
TAKE_ONE = {"attach", "resume", "show", "stop", "replay", "run", "check", "parity", "verify", "export", "quantize"}


def text_of(name: str) -> str:
    return (ROOT / name).read_text()


def prose(text: str) -> str:
    """A page without its code blocks."""
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


def code_spans(text: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", prose(text))


def commands() -> list[str]:
    """Every `cockpit …` in the documents, with example values for placeholders and without pipes."""
    found: list[str] = []
    for name in NAMES:
        text = text_of(name)
        blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
        found += [line for block in blocks for line in block.splitlines()]
        found += code_spans(text)
    lines = (re.sub(r"\s+#.*", "", line).split(" | ")[0].removeprefix(".venv/bin/").strip() for line in found)
    return sorted({line for line in lines if re.match(r"cockpit( [a-z-]|$)", line) and "--version" not in line})


def subcommands() -> set[str]:
    """The commands that the command line has."""
    actions = build_parser()._actions
    return {name for action in actions if isinstance(action, argparse._SubParsersAction) for name in action.choices}


def first_column(name: str, heading: str) -> list[str]:
    """The code spans in the first column of a page's table below a heading."""
    section = text_of(name).partition(f"{heading}\n")[2].partition("\n## ")[0]
    cells = [line.split("|")[1] for line in section.splitlines() if line.startswith(("| `", "| [`"))]
    return [span for cell in cells for span in re.findall(r"`([^`]+)`", cell)]


def test_the_documents_mention_every_command() -> None:
    named = {command.split()[1] for command in commands() if len(command.split()) > 1}
    assert named >= subcommands()
    listed = {span.split()[1] for span in first_column("docs/commands.md", "# Commands") if " " in span}
    assert listed == subcommands()


@pytest.mark.parametrize("command", commands())
def test_every_command_in_the_documents_parses(command: str) -> None:
    words = shlex.split(command)[1:]
    if words and words[0] in TAKE_ONE and all(word.startswith("--") for word in words[1:]):
        words.append("RUN")  # named in passing
    build_parser().parse_args(words)


@pytest.mark.parametrize("name", NAMES)
def test_every_file_that_a_document_names_is_there(name: str) -> None:
    named = [span for span in code_spans(text_of(name)) if re.fullmatch(rf"(?:{TOP})/[\w./-]*", span)]
    missing = [path for path in named if not (ROOT / path).exists()]
    assert not missing


@pytest.mark.parametrize("name", NAMES)
def test_every_module_that_a_document_names_is_there(name: str) -> None:
    """`engines.json_text.parse_json` is a module and a name in it; in a diagram, only the module is looked for."""
    missing = []
    for dotted in re.findall(rf"(?<![\w./-])(?:{'|'.join(PACKAGES)}|tests|bench)(?:\.[a-z_]\w*)+", text_of(name)):
        parts = dotted.split(".")
        if parts[-1] in {"toml", "json", "md", "py"}:
            continue
        modules = [ROOT.joinpath(*parts[:end]) for end in range(len(parts), 0, -1)]
        depth = next(len(module.relative_to(ROOT).parts) for module in modules if _is_module(module))
        rest = parts[depth:]
        file = ROOT.joinpath(*parts[:depth]).with_suffix(".py")
        known = file.is_file() and len(rest) == 1 and re.search(rf"\b{rest[0]}\b", file.read_text())
        if rest and not known:
            missing.append(dotted)
    assert not missing


def _is_module(path: Path) -> bool:
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


@pytest.mark.parametrize("name", NAMES)
def test_every_link_leads_somewhere(name: str) -> None:
    missing = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(text_of(name))):
        if re.match(r"[a-z]+://", target):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / name).parent / path if path else ROOT / name
        if not file.exists() or (anchor and anchor not in _anchors(file)):
            missing.append(target)
    assert not missing


def _anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def test_every_page_is_reached_from_the_readme() -> None:
    seen: set[Path] = set()
    waiting = [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in seen or page.suffix != ".md":
            continue
        seen.add(page)
        targets = re.findall(r"\]\(([^)\s#]+)", prose(page.read_text()))
        waiting += [Path(os.path.normpath(page.parent / target)) for target in targets if "://" not in target]
    assert [name for name in NAMES if ROOT / name not in seen] == []


@pytest.mark.parametrize("name", NAMES)
def test_a_page_names_no_issue_and_no_path_of_one_machine(name: str) -> None:
    assert not re.findall(r"(?<![\w&])#\d+|/home/\w+|/(?:tmp|work)/", text_of(name))


def test_the_two_commands_stand_in_the_readme() -> None:
    blocks = re.findall(r"```sh\n(.*?)```", text_of("README.md"), re.DOTALL)
    assert [line.split("#")[0].strip() for line in blocks[0].splitlines()] == ["make demo", "make test"]


def test_architecture_fits_two_screens() -> None:
    assert len(text_of("ARCHITECTURE.md").splitlines()) <= 110


def test_make_targets_that_the_documents_name_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {target for name in NAMES for target in re.findall(r"\bmake ([a-z]+)\b`", text_of(name))}
    assert named <= targets
    assert targets >= {"help", "setup", "demo", "test", "check", "fix", "bench", "screenshots"}


def recipes_in_pages() -> list[tuple[str, str]]:
    """Every whole recipe that a page shows."""
    blocks = [(name, block) for name in NAMES for block in re.findall(r"```toml\n(.*?)```", text_of(name), re.DOTALL)]
    return [(name, block) for name, block in blocks if "schema = 1" in block]


@pytest.mark.parametrize(("name", "text"), recipes_in_pages(), ids=[name for name, _ in recipes_in_pages()])
def test_every_recipe_in_a_page_is_a_sound_one(name: str, text: str, tmp_path: Path) -> None:
    for folder in ("my-model", "my-data", "interactions", "library"):
        (tmp_path / folder).mkdir()
    assert load_recipe_text(text, tmp_path / "mine.toml").recipe.stage


# ---- lists of the pages, and what they list


def number_of(page: Path) -> int:
    """The number of a decision; 0 for a name without one."""
    found = re.fullmatch(r"D-(\d{2,})-[a-z0-9-]+\.md", page.name)
    return int(found[1]) if found else 0


def decisions() -> list[Path]:
    return sorted((ROOT / "docs" / "decisions").glob("D-*.md"), key=number_of)


def id_of(page: Path) -> str:
    return f"D-{number_of(page):02d}"


def test_decisions_have_numbers_of_their_own_and_are_listed() -> None:
    """Numbers are given before pages are written, so that one may be left out; none is used twice."""
    numbers = [number_of(page) for page in decisions()]
    assert min(numbers) > 0
    assert len(set(numbers)) == len(numbers)
    titles = [f"| [{id_of(page)}]({page.name}) | {_title(page)} |" for page in decisions()]
    rows = [line for line in text_of("docs/decisions/README.md").splitlines() if line.startswith("| [D-")]
    assert rows == titles


def _title(page: Path) -> str:
    return page.read_text().splitlines()[0].removeprefix(f"# {id_of(page)} ")


@pytest.mark.parametrize("page", decisions(), ids=id_of)
def test_a_decision_has_its_reason_and_its_cost(page: Path) -> None:
    text = page.read_text()
    assert text.startswith(f"# {id_of(page)} ")
    assert re.search(r"^\*\*Reason\.\*\* \S", text, re.MULTILINE)
    assert re.search(r"^\*\*Cost\.\*\* \S", text, re.MULTILINE)


@pytest.mark.parametrize("name", ADDING)
def test_adding_something_touches_at_most_five_files_that_exist(name: str) -> None:
    steps = re.findall(r"^\d+\. (.+)$", text_of(name), re.MULTILINE)
    assert 0 < len(steps) <= 5
    files = [span for step in steps for span in re.findall(rf"`((?:{TOP})/[^`]*)`", step)]
    assert files
    # A name in angle brackets is the new thing's: its folder exists, up to that name.
    homes = [ROOT / file.partition("<")[0].rpartition("/")[0] if "<" in file else ROOT / file for file in files]
    assert [str(home) for home in homes if not home.exists()] == []


def test_states_requests_and_exit_codes_are_those_of_the_program() -> None:
    life = text_of("docs/life-of-a-run.md").partition("## States")[2].partition("\n## ")[0]
    states = [word for line in life.splitlines() if line.startswith("| ") for word in line.split("|")[1].split(", ")]
    assert {word.strip() for word in states} - {"state"} == set(RunStatus)
    assert set(first_column("docs/life-of-a-run.md", "## Requests")) == set(Verb)
    codes = re.findall(r"^\| (\d+) \|", text_of("docs/commands.md"), re.MULTILINE)
    assert [int(code) for code in codes] == list(ExitCode)


def test_the_table_of_stages_has_every_kind() -> None:
    listed = [span for span in first_column("docs/recipes.md", "## Stages") if "=" not in span]
    assert set(listed) == set(STAGE_KINDS)


def test_the_table_of_recipes_has_every_shipped_recipe() -> None:
    listed = first_column("docs/recipes.md", "## Shipped recipes")
    assert sorted(listed) == sorted(path.stem for path in (ROOT / "recipes").glob("*.toml"))


def test_the_rooms_are_described_by_their_own_first_line() -> None:
    rooms = []
    for top in PACKAGES:
        for init in sorted((ROOT / top).rglob("__init__.py")):
            doc = ast.get_docstring(ast.parse(init.read_text()))
            assert doc, f"{init.relative_to(ROOT)} does not say what its room is for"
            rooms.append(f"| `{init.parent.relative_to(ROOT)}/` | {doc.splitlines()[0]} |")
    listed = [line for line in text_of("docs/files.md").splitlines() if re.match(rf"\| `({'|'.join(PACKAGES)})/", line)]
    assert listed == rooms, "docs/files.md lists other rooms; this is the table:\n" + "\n".join(rooms)


def test_what_a_training_script_has_becomes_fields_of_a_stage() -> None:
    section = text_of("docs/your-model.md").partition("## Coming from a training script\n")[2].partition("\n## ")[0]
    right = [line.split("|")[2] for line in section.splitlines() if line.startswith("| `")]
    fields = {span for cell in right if "not " not in cell for span in re.findall(r"`([^`]+)`", cell)}
    assert "per_device_train_batch_size" in fields
    assert fields <= {spec.path for spec in fields_of("finetune")}


def test_every_family_that_is_written_is_named() -> None:
    from exporters.hf_model.architectures import ARCHITECTURES

    for family in ARCHITECTURES:
        assert family.removesuffix("ForCausalLM") in text_of("docs/exports.md")


def test_every_environment_variable_is_documented() -> None:
    own = {"COCKPIT_RUN_ROOT", "COCKPIT_RUN_MARK", "COCKPIT_CARD", "COCKPIT_TORCHRUN_PID"}
    """set by Cockpit for the processes that it starts"""
    sources = [path for top in PACKAGES for path in (ROOT / top).rglob("*.py")]
    read = {name for path in sources for name in re.findall(r'"(COCKPIT_[A-Z_]+)"', path.read_text())} - own
    listed = set(first_column("docs/machines.md", "## Environment variables"))
    named = listed | {"COCKPIT_TEST_FAULTS"}  # in docs/testing.md: no operator sets it
    assert read <= named
    assert {name for name in listed if name.startswith("COCKPIT_")} == set(ENVIRONMENT), "those of the manual page"


def test_the_page_about_screens_has_every_key_with_what_it_does_and_no_other() -> None:
    page = text_of("docs/screens.md")
    before_environment = page.partition("## Environment")[0]
    listed = [line for line in before_environment.splitlines() if line.startswith("| `")]
    assert listed == [f"| `{key.drawn}` | {key.help} |" for scope in SCREENS for key in SCOPES[scope]]
    assert set(SCREENS) == set(SCOPES)
    assert {"COCKPIT_GLYPHS", "COCKPIT_THEME", "NO_COLOR"} <= set(first_column("docs/screens.md", "## Environment"))


def test_every_data_format_is_named() -> None:
    from engines.data.readers.formats import CONTAINERS, SHAPES

    text = text_of("docs/your-model.md").lower()
    assert [entry.name for entry in (*CONTAINERS, *SHAPES) if entry.name.lower() not in text] == []


def test_every_shape_of_a_row_has_a_page_whose_rows_are_read() -> None:
    from engines.data.readers.formats import MAPPED, SHAPES, shape_of
    from engines.data.readers.mapped import Columns
    from engines.data.readers.reading import Reading

    assert {path.stem for path in (ROOT / "docs/formats").glob("*.md")} == {s.name for s in (*SHAPES, MAPPED)}
    for shape in (*SHAPES, MAPPED):
        page = text_of(f"docs/formats/{shape.name}.md")
        settings = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
        columns = tomllib.loads(settings[0])["columns"] if settings else {}
        rows = [json.loads(row) for row in re.findall(r"```json\n(.*?)```", page, re.DOTALL)]
        assert rows
        for row in rows:
            value = Columns(columns).applied(row)
            assert shape_of(value, columns) is shape
            assert shape.row(value, Reading(columns)) is not None


def test_every_import_contract_is_explained() -> None:
    contracts = [contract["name"] for contract in PROJECT["tool"]["importlinter"]["contracts"]]
    section = text_of("docs/testing.md").partition("## Import contracts")[2].partition("\n## ")[0]
    rows = [line.split("|")[1].strip() for line in section.splitlines() if line.startswith("| ")]
    assert rows[1:] == contracts


def test_every_fault_is_explained() -> None:
    source = (ROOT / "engines/training/faults.py").read_text() + (ROOT / "engines/fake/stage.py").read_text()
    known = set(re.findall(r'_of\("(\w+)"', source)) | set(re.findall(r'test_faults\.get\("(\w+)"', source))
    named = set(re.findall(r'`\{"(\w+)"', text_of("docs/testing.md")))
    assert named == known


# ---- versions


def test_the_version_is_the_same_everywhere() -> None:
    assert PROJECT["project"]["version"] == cockpit.__version__
    assert f'"cockpit {cockpit.__version__}"' in text_of("docs/cockpit.1")
    assert f"## [{cockpit.__version__}]" in text_of("CHANGELOG.md")


def test_every_dependency_is_pinned_and_within_its_range() -> None:
    from packaging.requirements import Requirement

    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    pinned = {name.lower().replace("_", "-"): version for name, version in pins.items()}
    extras = PROJECT["project"]["optional-dependencies"]
    for text in [*PROJECT["project"]["dependencies"], *(item for extra in extras.values() for item in extra)]:
        requirement = Requirement(text)
        name = requirement.name.lower().replace("_", "-")
        assert name in pinned, f"{name} is not pinned"
        assert requirement.specifier.contains(pinned[name]), f"{text} excludes {pinned[name]}"
