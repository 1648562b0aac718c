"""The command that starts an engine behind a launcher: a program that the recipe names, such as docker or numactl.

A launcher's words come before the engine's own command. To those of a container Cockpit adds what the engine needs and
nothing else: the run's folder, the folders that the stage reads and Cockpit's code, these read-only; the user; and the
engine's environment. All of them have the same paths inside as outside.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cockpit import CODE_ROOT
from engines.run_dir.paths import RunDir
from engines.stage_file import StageInput
from recipes.stages.fields import StageFields
from recipes.stages.launch.fields import CONTAINERS, launch_of

PYTHON_INSIDE = "python3"
"""The interpreter in a container, if the stage's `python` names none: that of Cockpit is not there."""
_OUTSIDE_ONLY = frozenset({"PATH", "HOME", "PWD", "OLDPWD", "SHLVL", "TMPDIR", "VIRTUAL_ENV", "LD_LIBRARY_PATH"})
"""Variables that name what a container does not have."""


def interpreter_of(stage: StageFields) -> str:
    """The interpreter of a stage's engine, where it runs."""
    return stage.python or (PYTHON_INSIDE if launch_of(stage).container else sys.executable)


def launched(
    words: Sequence[str],
    stage: StageFields,
    run: RunDir,
    inputs: Iterable[StageInput],
    environment: Mapping[str, str],
) -> list[str]:
    """The whole command.

    Args:
        words: the engine's own command.
        stage: its stage, with the launcher.
        run: the run directory.
        inputs: what the stage reads.
        environment: the engine's.
    """
    launch = launch_of(stage)
    if not launch.container:
        return [*launch.launcher, *words]
    at = launch.launcher.index(CONTAINERS[launch.container]) + 1
    read = _read_only(stage, inputs, run)
    if CONTAINERS[launch.container] == "exec":
        options = [word for path in read for word in ("--bind", f"{path}:{path}:ro")]
        options += ["--bind", f"{run.root}:{run.root}"]
    else:
        options = ["--rm", "--init", "--user", f"{os.getuid()}:{os.getgid()}", "--workdir", str(run.root)]
        options += ["--userns", "keep-id"] if launch.container == "podman" and os.getuid() else []
        options += [word for path in read for word in ("--volume", f"{path}:{path}:ro")]
        options += ["--volume", f"{run.root}:{run.root}"]
        options += [word for name in sorted(set(environment) - _OUTSIDE_ONLY) for word in ("--env", name)]
    return [*launch.launcher[:at], *options, *launch.launcher[at:], *words]


def _read_only(stage: StageFields, inputs: Iterable[StageInput], run: RunDir) -> list[Path]:
    """What the engine reads outside the run's folder, without what lies within another one of these."""
    named = [CODE_ROOT, *(Path(given.path) for given in inputs if given.path)]
    named += [Path(text) for text in _texts(stage.model_dump(mode="json", exclude={"launch", "python"}))]
    there = {path for path in named if path.is_absolute() and path.exists() and path.resolve() != Path("/")}
    there |= {target.parent for path in there for target in _linked_from(path)}
    there -= {path for path in there if path.resolve().is_relative_to(run.root.resolve())}
    return sorted(path for path in there if not any(parent in there for parent in path.parents))


def _linked_from(path: Path) -> Iterator[Path]:
    """The files outside a folder that links in it lead to, as in a hub's cache."""
    if path.is_dir():
        targets = (entry.resolve() for entry in path.iterdir() if entry.is_symlink() and entry.exists())
        yield from (target for target in targets if target.is_file() and not target.is_relative_to(path.resolve()))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str) and value.startswith("/") and len(value) < 4096 and "\0" not in value:
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)
