"""How many configurations of others `cockpit import` can use: `python -m bench.imports FOLDER...`.

Each folder is a checkout with configurations (YAML, and registries of data sets); nothing is downloaded. Every key of
every file must have an outcome, which is checked by reading the file again with PyYAML; `--keys` lists the keys that
are not known, with how many files have them. Data files that a registry describes are read whole, with the
fields of their stage; their rows and bad rows are counted.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from cockpit.importing.config import read_config
from cockpit.importing.programs import import_config
from cockpit.importing.recipe_text import recipe_text
from engines.data.door import DataSource, ReadCounts, Refused, each_row
from recipes.load import load_recipe_text
from recipes.problems import OperatorError, RecipeError

SUFFIXES = (".yaml", ".yml")
REGISTRY = "dataset_info.json"


def main() -> int:
    """Print one line for each file and the sums; 1 if a key of a file has no outcome, or a recipe cannot be parsed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="+", type=Path)
    parser.add_argument("--keys", action="store_true")
    parser.add_argument("--quiet", action="store_true")
    args = parser.parse_args()
    sums: Counter[str] = Counter()
    unknown: Counter[str] = Counter()
    for path in sorted(files_of(args.folder)):
        kind, line = import_file(path, unknown)
        sums[kind] += 1
        if not args.quiet:
            print(f"{kind:<22} {path}  {line}")
    print(", ".join(f"{kind}: {number}" for kind, number in sums.most_common()))
    if args.keys:
        print("\n".join(f"{number:>4}  {key}" for key, number in unknown.most_common()))
    return 1 if sums["KEY WITHOUT OUTCOME"] or sums["BAD RECIPE"] else 0


def files_of(folders: list[Path]) -> Iterator[Path]:
    """The configurations in folders."""
    for folder in folders:
        yield from (path for path in folder.rglob("*") if path.suffix in SUFFIXES or path.name == REGISTRY)


def import_file(path: Path, unknown: Counter[str]) -> tuple[str, str]:
    """What the import of a file is, and a line about it."""
    try:
        found = import_config(read_config(path), None)
    except OperatorError as error:
        return "no configuration", error.message.partition("; its keys")[0]
    keys = set(json.loads(path.read_text()) if path.suffix == ".json" else yaml.safe_load(path.read_text()))
    outcomes = Counter(one.status for one in found.outcomes)
    unknown.update(one.key for one in found.outcomes if one.status == "unknown")
    dropped = {str(key) for key in keys} - {one.key for one in found.outcomes}
    if dropped:
        return "KEY WITHOUT OUTCOME", ", ".join(sorted(dropped))
    text = recipe_text(found)
    if not text:
        return "no method", "; ".join(f"{one.key}: {one.says}" for one in found.missing)[:160]
    if found.registry:
        return "registry", "; ".join(data_rows(found.stages))
    numbers = ", ".join(f"{number} {status}" for status, number in outcomes.most_common())
    try:
        load_recipe_text(text, path.parent / "imported.toml")
    except RecipeError as error:
        needs = {problem.key.rpartition(".")[2]: str(problem) for problem in error.problems}
        if needs.keys() - {"model", "data", "adapter", "adapters"}:
            return "BAD RECIPE", str(needs)
        return "recipe without " + ", ".join(sorted(needs)), numbers
    return "recipe", numbers


def data_rows(stages: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Each described data file that exists, with its rows and its bad rows."""
    for name, fields in stages.items():
        place = Path(str(fields.get("data")))
        if place.is_absolute() and place.exists():
            shape = {key: fields[key] for key in ("format", "columns") if key in fields}
            source = DataSource(place, ignore_keys=tuple(fields.get("ignore_keys", ())), **shape)
            counts = ReadCounts()
            bad = sum(isinstance(one, Refused) for one in each_row(source, "train", counts))
            yield f"{name}: {counts.rows} rows, {bad} bad"
    yield f"{len(stages)} data sets in all"


if __name__ == "__main__":
    sys.exit(main())
