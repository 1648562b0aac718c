"""`cockpit du`: what runs take on the disk."""

from __future__ import annotations

import argparse

from cockpit.command_line.arguments import add_json
from cockpit.command_line.parser import CommandParser
from cockpit.keeping.remove import leftovers
from cockpit.keeping.sizes import PARTS, Sizes, folder_bytes, sizes_of
from cockpit.runs.find import find_run, run_ids, runs_root
from cockpit.text import formatting as fmt
from cockpit.text.output import print_json, print_out, say
from cockpit.text.safe_text import safe_text
from cockpit.text.text_table import text_table
from engines.run_dir.paths import RunDir
from engines.words import ExitCode


def declare(parser: CommandParser) -> None:
    """The arguments of `cockpit du`."""
    parser.add_argument("runs", nargs="*", metavar="RUN", help="runs to measure (default: all)")
    add_json(parser)
    parser.examples = (
        ("cockpit du", "List all runs, the largest first, with their checkpoints, outputs, journals and logs."),
        ("cockpit du last --json", "Measure the newest run; sizes are in bytes."),
    )


def run(args: argparse.Namespace) -> ExitCode:
    """Measure and print."""
    root = runs_root(args.runs_dir)
    runs = [find_run(root, name) for name in args.runs] or [RunDir(root / name) for name in run_ids(root)]
    found = sorted(((one.id, sizes_of(one)) for one in runs), key=lambda item: (-item[1].total, item[0]))
    left = [] if args.runs else leftovers(root)
    if args.json:
        records = [{"id": name, **_json(sizes)} for name, sizes in found]
        print_json({"runs": records, "total_bytes": sum(sizes.total for _, sizes in found)})
        return ExitCode.DONE
    if not found:
        print_out(f"no runs in {safe_text(root, 400)} yet; start one: cockpit run demo")
        return ExitCode.DONE
    rows = [
        [safe_text(name, 60), *(_cell(sizes.parts[part]) for part in PARTS), _total(sizes)] for name, sizes in found
    ]
    sums = [sum(sizes.parts[part] for _, sizes in found) for part in PARTS]
    rows.append(["total", *map(_cell, sums), fmt.size(sum(sums))])
    print_out("\n".join(text_table(("run", *PARTS, "total"), rows, right=range(1, len(PARTS) + 2))))
    for folder in left:
        say(
            f"left of a removed run: {safe_text(folder, 400)} ({fmt.size(folder_bytes(folder))}); cockpit rm removes it"
        )
    return ExitCode.DONE


def _json(sizes: Sizes) -> dict[str, object]:
    parts = {f"{part.replace(' ', '_')}_bytes": size for part, size in sizes.parts.items()}
    return {**parts, "total_bytes": sizes.total, "complete": sizes.complete}


def _cell(size: int) -> str:
    return fmt.size(size) if size else "-"


def _total(sizes: Sizes) -> str:
    return fmt.size(sizes.total) if sizes.complete else f"≥ {fmt.size(sizes.total)}"
