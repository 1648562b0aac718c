"""The command that installs the engines' packages names what exists: a checkout, a file or a git URL."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from cockpit.launching.installing import EXTRAS, PROJECT, _source, install_command

ROOT = Path(__file__).resolve().parents[3]
ELSEWHERE = Path("/nowhere")


def test_a_checkout_is_installed_from_itself_with_the_extras_that_it_has() -> None:
    assert shlex.split(install_command("/opt/my python")) == [
        *("/opt/my python", "-m", "pip", "install", "-e"),
        f"{ROOT}[{EXTRAS}]",
    ]
    text = (ROOT / "pyproject.toml").read_text()
    assert all(f"\n{extra} = [" in text for extra in EXTRAS.split(","))


def test_an_installed_copy_is_installed_from_the_commit_that_it_came_from() -> None:
    origin = json.dumps({"url": "https://example.org/c.git", "vcs_info": {"vcs": "git", "commit_id": "0a1b"}})
    (text,) = shlex.split(_source(ELSEWHERE, origin))
    parsed = Requirement(text)
    assert (parsed.name, parsed.extras, parsed.url) == (
        PROJECT,
        set(EXTRAS.split(",")),
        "git+https://example.org/c.git@0a1b",
    )


def test_a_folder_or_a_file_is_named_while_it_exists(tmp_path: Path) -> None:
    wheel = tmp_path / "a b.whl"
    wheel.touch()
    (text,) = shlex.split(_source(ELSEWHERE, json.dumps({"url": wheel.as_uri(), "archive_info": {}})))
    assert Requirement(text).url == wheel.as_uri()
    assert shlex.split(_source(ELSEWHERE, json.dumps({"url": ROOT.as_uri(), "dir_info": {}}))) == [f"{ROOT}[{EXTRAS}]"]
    wheel.unlink()
    assert _source(ELSEWHERE, json.dumps({"url": wheel.as_uri(), "archive_info": {}})) == _source(ELSEWHERE, "")


@pytest.mark.parametrize(
    "origin", ["", "[]", "not json", '{"url": 7}', '{"url": "file:///nowhere"}', '{"vcs_info": 1}']
)
def test_without_a_record_the_command_asks_for_a_checkout(origin: str) -> None:
    assert _source(ELSEWHERE, origin) == f"'.[{EXTRAS}]' (in a checkout of Cockpit)"
