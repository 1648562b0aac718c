"""Finds models and datasets in the local cache of the Hugging Face hub, without its library; nothing is downloaded."""

from __future__ import annotations

import os
import re
from pathlib import Path

from engines.files import read_regular_text

REVISION_MARK = "@"
"""Between a hub id and the revision that is pinned: a commit, a tag or a branch."""
MAIN = "main"
_REVISION = re.compile(r"[0-9a-f]{40}")


def hub_cache() -> Path:
    """The cache's folder, as huggingface_hub chooses it."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if os.environ.get(name):
            return Path(os.environ[name]).expanduser()
    home = os.environ.get("HF_HOME")
    place = Path(home) if home else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return place.expanduser() / "hub"


def divided(hub_id: str) -> tuple[str, str]:
    """The id without its revision, and the revision: main where the id pins none."""
    name, _, revision = hub_id.partition(REVISION_MARK)
    return name, revision or MAIN


def cached_model(hub_id: str) -> Path | None:
    """The folder of a model (org/name, or org/name@REVISION) in the cache; None if it is not there.

    Of a pinned revision it is the folder of that commit and of no other.
    """
    return _cached("models", hub_id)


def cached_dataset(hub_id: str) -> Path | None:
    """The folder of a dataset in the cache, as for a model."""
    return _cached("datasets", hub_id)


def _cached(kind: str, hub_id: str) -> Path | None:
    name, revision = divided(hub_id)
    home = hub_cache() / f"{kind}--{name.replace('/', '--')}"
    commit = commit_of(home, revision)
    folder = home / "snapshots" / commit if commit else home
    return folder if commit and folder.is_dir() else None


def commit_of(home: Path, revision: str) -> str:
    """The commit of a revision of a cached model, in the model's folder of the cache; empty if it is not known."""
    if _REVISION.fullmatch(revision):
        return revision
    if revision.startswith("/") or ".." in revision.split("/"):
        return ""
    try:
        return read_regular_text(home / "refs" / revision, 100).strip()
    except (OSError, ValueError):
        return ""
