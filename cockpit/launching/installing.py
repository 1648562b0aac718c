"""The command that installs the engines' packages. No package index has Cockpit, so the command uses the source from
which this Cockpit was installed."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from urllib.parse import unquote, urlsplit

from engines.json_text import parse_json

PROJECT = "training-cockpit"
EXTRAS = "train,export,report"
BY_NAME = frozenset({"liger-kernel", "mlflow", "wandb"})
"""Distributions that a field of a recipe asks for and that no extra of Cockpit has."""
_HERE = Path(__file__).resolve().parents[2]


def install_command(python: str, missing: Iterable[str] = ()) -> str:
    """A command line that installs the engines' packages into an interpreter.

    Args:
        python: path of the interpreter.
        missing: distributions that it lacks; those that no extra of Cockpit has are installed by name, and alone if
            nothing else is missing.
    """
    lacks = set(missing)
    by_name = sorted(lacks & BY_NAME)
    source = [] if lacks and lacks == set(by_name) else [_source(_HERE, _recorded_origin())]
    return " ".join([shlex.quote(python), "-m pip install", *by_name, *source])


def _source(here: Path, origin: str) -> str:
    """The requirement that pip installs.

    Args:
        here: the folder that contains the packages of the running Cockpit.
        origin: pip's record of their source, as in `direct_url.json`; may be empty.
    """
    if _is_checkout(here):
        return f"-e {shlex.quote(f'{here}[{EXTRAS}]')}"
    try:
        recorded = parse_json(origin)
        url = str(recorded["url"])
        commit = str(recorded["vcs_info"]["commit_id"]) if "vcs_info" in recorded else ""
    except (ValueError, LookupError, TypeError):
        url = commit = ""
    if commit:
        return shlex.quote(f"{PROJECT}[{EXTRAS}] @ git+{url}@{commit}")
    parts = urlsplit(url)
    folder = Path(unquote(parts.path))
    if parts.scheme == "file" and _is_checkout(folder):
        return shlex.quote(f"{folder}[{EXTRAS}]")
    if parts.scheme == "https" or (parts.scheme == "file" and folder.is_file()):
        return shlex.quote(f"{PROJECT}[{EXTRAS}] @ {url}")
    return f"'.[{EXTRAS}]' (in a checkout of Cockpit)"


def _is_checkout(folder: Path) -> bool:
    try:
        return f'name = "{PROJECT}"' in (folder / "pyproject.toml").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return False


def _recorded_origin() -> str:
    try:
        return metadata.distribution(PROJECT).read_text("direct_url.json") or ""
    except metadata.PackageNotFoundError:
        return ""
