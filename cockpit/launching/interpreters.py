"""Before a launch: check that each stage's interpreter has the packages that the stage needs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Mapping
from importlib import metadata

from cockpit.launching.installing import BY_NAME, install_command
from cockpit.launching.requirements import cannot_import, source, unmet
from cockpit.text import formatting
from engines.json_text import parse_json
from recipes.problems import OperatorError, printable
from recipes.schema import Recipe
from recipes.stages.fields import StageFields
from recipes.stages.kind import TESTED, backend_of
from recipes.stages.launch.fields import launch_of
from recipes.stages.registry import row_of

CHOOSE_ANOTHER = "set the stage's python to an interpreter that has the engines' packages"
ASK_TIMEOUT_S = 60.0
_QUESTION = f"""
import json, sys
from importlib import metadata
{source(unmet)}
found = {{}}
for name in sys.argv[1:]:
    try: found[name] = metadata.version(name)
    except metadata.PackageNotFoundError: found[name] = None
lacking = unmet(sys.argv[1:])
print(json.dumps({{"python": list(sys.version_info[:2]), "found": found, "unmet": lacking}}))
"""


def check_here(packages: Iterable[str], what: str) -> None:
    """Refuse work for which this interpreter lacks packages.

    Args:
        packages: distributions.
        what: the work, for the message.

    Raises:
        OperatorError: packages are missing.
    """
    missing = sorted(name for name, version in _versions_here(set(packages)).items() if version is None)
    if missing:
        raise OperatorError(
            f"{what} needs {', '.join(missing)}; {sys.executable} lacks {'it' if len(missing) == 1 else 'them'}",
            f"install them: {install_command(sys.executable, missing)}",
        )


def check_interpreters(recipe: Recipe, names: list[str]) -> None:
    """Refuse a launch whose engines cannot start.

    What a container has is not known before it starts: the engine says what it lacks there.

    Raises:
        OperatorError: an interpreter is missing or too old, lacks a package, or has an untested version of a package.
    """
    problems: list[str] = []
    wanted: dict[tuple[str | None, str], set[str]] = {}
    for stage in recipe.stage:
        if stage.name in names and not launch_of(stage).container:
            wanted.setdefault((stage.python, backend_of(stage)), set()).update(row_of(stage).needs(stage))
    hints: dict[str, None] = {}
    for (python, backend), packages in wanted.items():
        try:
            found, lacking = _here(packages) if python is None else _versions_there(python, packages)
        except _UnusableError as error:
            problems.append(str(error))
            hints[CHOOSE_ANOTHER] = None
            continue
        strict = python is not None or backend != "hf"
        mismatches = _mismatches(python or sys.executable, found, TESTED[backend] if strict else {})
        broken = "" if mismatches else cannot_import(python or sys.executable, packages, lacking)
        mismatches += [broken] if broken else []
        if mismatches:
            problems += mismatches
            lacks = {name for name, version in found.items() if version is None}
            hints[_way_out(python or sys.executable, backend, packages, lacks)] = None
    if problems:
        raise OperatorError("\n".join(problems), "\n".join(hints))


def missing_packages(stage: StageFields) -> tuple[set[str], str]:
    """The distributions that a stage's interpreter lacks, and the command that installs them.

    Raises:
        OperatorError: the interpreter cannot be asked.
    """
    packages = set(row_of(stage).needs(stage))
    try:
        found, _ = _here(packages) if stage.python is None else _versions_there(stage.python, packages)
    except _UnusableError as error:
        raise OperatorError(str(error), CHOOSE_ANOTHER) from error
    missing = {name for name, version in found.items() if version is None}
    return missing, install_command(stage.python or sys.executable, missing)


class _UnusableError(Exception):
    """An interpreter that installing packages would not make usable."""


def _way_out(python: str, backend: str, packages: Iterable[str], lacks: set[str]) -> str:
    if backend == "hf":
        what = "them" if lacks and lacks <= BY_NAME else "the engines' packages"
        return f"install {what}: {install_command(python, lacks)}"
    tested = TESTED[backend]
    wanted = " ".join(f"'{name}=={tested[name]}.*'" if name in tested else name for name in sorted(packages))
    return (
        f'backend = "{backend}" needs an environment of its own: make one (python3 -m venv ENVIRONMENT), install into'
        f" it (ENVIRONMENT/bin/python -m pip install {wanted}), and set the stage's python to"
        f' ENVIRONMENT/bin/python; or set backend = "hf"'
    )


def _mismatches(python: str, found: dict[str, str | None], contract: Mapping[str, str]) -> list[str]:
    missing = sorted(name for name, version in found.items() if version is None)
    problems = [f"{python} lacks {', '.join(missing)}"] if missing else []
    for name, tested in contract.items():
        version = found.get(name)
        if version and not version.startswith(tested + "."):
            problems.append(f"{python} has {name} {version}; the engines are tested with {tested}.*")
    return problems


def _here(packages: set[str]) -> tuple[dict[str, str | None], dict[str, str]]:
    """The versions of packages, and what their own requirements lack."""
    found = _versions_here(packages)
    return found, {} if None in found.values() else unmet(sorted(packages))


def _versions_here(packages: set[str]) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def why_no_answer(error: Exception) -> str:
    """What went wrong with the question, without the program that asks it."""
    match error:
        case subprocess.TimeoutExpired():
            return f"no answer within {formatting.duration(error.timeout)}"
        case subprocess.CalledProcessError():
            said = str(error.stderr or "").strip().splitlines()[-1:]
            end = f"signal {-error.returncode}" if error.returncode < 0 else f"status {error.returncode}"
            return ": ".join([f"it ended with {end}", *(printable(line, 200) for line in said)])
        case OSError():
            return error.strerror or str(error)
        case _:
            return "its answer is not the one of a Python interpreter"


def _versions_there(python: str, packages: set[str]) -> tuple[dict[str, str | None], dict[str, str]]:
    """The same in another interpreter."""
    try:
        answer = subprocess.run(
            [python, "-c", _QUESTION, *sorted(packages)],
            capture_output=True,
            text=True,
            timeout=ASK_TIMEOUT_S,
            check=True,
        )
        value = parse_json(answer.stdout.splitlines()[-1])
        version, found = tuple(value["python"]), dict(value["found"])
        lacking = {str(name): str(owner) for name, owner in dict(value.get("unmet") or {}).items()}
    except FileNotFoundError:
        raise _UnusableError(
            f"python — no such file; got {python!r}; allowed: the path of a Python 3.11 or newer"
        ) from None
    except (OSError, subprocess.SubprocessError, ValueError, LookupError, TypeError) as error:
        raise _UnusableError(f"python — could not query {python!r}: {why_no_answer(error)}") from error
    if version < (3, 11):
        raise _UnusableError(f"python — {python!r} is Python {'.'.join(map(str, version))}; allowed: 3.11 or newer")
    return found, lacking
