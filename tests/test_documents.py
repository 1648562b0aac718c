"""What the documents promise exists: commands parse, files are there, versions agree."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import pytest

import cockpit
from cockpit.cli import build_parser

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def commands() -> list[str]:
    """Every `cockpit …` in the documents, with example values for placeholders and without pipes."""
    found: list[str] = []
    for name in DOCUMENTS:
        text = (ROOT / name).read_text()
        blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
        found += [line for block in blocks for line in block.splitlines()]
        found += re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    lines = (re.sub(r"\s+#.*", "", line).split(" | ")[0].removeprefix(".venv/bin/").strip() for line in found)
    return sorted({line for line in lines if re.match(r"cockpit( [a-z-]|$)", line)})


def test_the_documents_mention_every_command() -> None:
    named = {command.split()[1] for command in commands() if len(command.split()) > 1}
    assert named >= {
        "run",
        "check",
        "ls",
        "show",
        "attach",
        "stop",
        "resume",
        "replay",
        "merge",
        "export",
        "parity",
        "verify",
    }


@pytest.mark.parametrize("command", commands())
def test_every_command_in_the_documents_parses(command: str) -> None:
    words = shlex.split(command)[1:]
    if (
        words
        and len(words) == 1
        and words[0] in {"attach", "resume", "show", "stop", "replay", "run", "check", "parity", "verify"}
    ):
        words.append("RUN")  # named in passing
    build_parser().parse_args(words)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_file_that_a_document_names_is_there(name: str) -> None:
    text = (ROOT / name).read_text()
    linked = re.findall(r"\]\(([^)#:]+)\)", text)
    named = re.findall(r"`((?:cockpit|engines|exporters|recipes|tests|bench|screenshots)/[\w./-]*)`", text)
    missing = [path for path in [*linked, *named] if not (ROOT / path).exists()]
    assert not missing


def test_make_targets_that_the_documents_name_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {target for name in DOCUMENTS for target in re.findall(r"\bmake ([a-z]+)\b`", (ROOT / name).read_text())}
    assert named <= targets
    assert targets >= {"help", "setup", "demo", "test", "check", "fix", "bench", "screenshots"}


def test_the_version_is_the_same_everywhere() -> None:
    assert PROJECT["project"]["version"] == cockpit.__version__


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
