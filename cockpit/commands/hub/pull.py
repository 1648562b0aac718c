"""`cockpit pull ID[@REVISION]`: download a model into the hub's cache, verified, and print how a recipe pins it."""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from dataclasses import dataclass, field

from cockpit.command_line.arguments import add_json
from cockpit.command_line.parser import CommandParser
from cockpit.models.needed import is_pickle
from cockpit.models.pull import Plan, check_disk, plan_of, pull
from cockpit.text import formatting as fmt
from cockpit.text.output import print_json, print_out, say
from cockpit.text.safe_text import safe_text
from engines.inputs.hub_cache import REVISION_MARK
from engines.words import ExitCode
from recipes.graph import HUB_ID
from recipes.problems import OperatorError, printable

_MAIN = "main"
_SHOWN_EVERY_S = 0.2


def declare(parser: CommandParser) -> None:
    """The arguments of `cockpit pull`."""
    parser.add_argument("model", metavar="ID[@REVISION]", help="a model of the hub, such as org/name or org/name@v1.0")
    parser.add_argument(
        "--file",
        action="append",
        default=[],
        metavar="NAME",
        help="a file, or a pattern of files, instead of those that a model folder needs; repeatable",
    )
    parser.add_argument("--dry-run", action="store_true", help="print what would be downloaded, and download nothing")
    add_json(parser)
    parser.exit_codes = {
        ExitCode.DONE: "every file is in the cache and verified",
        ExitCode.MISTAKE: "the hub, the disk or a file does not allow it; what was transferred is kept",
    }
    parser.examples = (
        ("cockpit pull HuggingFaceTB/SmolLM2-135M-Instruct", "Download the present commit of a model."),
        ("cockpit pull org/name@v1.0 --dry-run", "List the files and their sizes."),
    )


def run(args: argparse.Namespace) -> ExitCode:
    """Download; prints the commit that a recipe pins."""
    if importlib.util.find_spec("huggingface_hub") is None:
        raise OperatorError("huggingface_hub is not installed here", "pip install huggingface_hub")
    name, _, revision = args.model.partition(REVISION_MARK)
    if not HUB_ID.fullmatch(name):
        raise OperatorError(f"ID — got {printable(args.model, 120)!r}; allowed org/name, or org/name@REVISION")
    plan = plan_of(name, revision or _MAIN, args.file)
    pickles = [one.name for one in plan.files if is_pickle(one)]
    if pickles:
        say(f"warning: {safe_text(pickles[0], 100)} is a pickle, the only form in which the repository has its weights")
    if not args.dry_run:
        check_disk(plan)
        pull(plan, _Line(live=sys.stderr.isatty() and not args.json).show)
    if args.json:
        print_json(_record(plan))
        return ExitCode.DONE
    print_out("\n".join(_lines(plan, dry=args.dry_run)))
    return ExitCode.DONE


def _record(plan: Plan) -> dict[str, object]:
    return {
        "id": plan.hub_id,
        "revision": plan.revision,
        "commit": plan.commit,
        "path": str(plan.snapshot),
        "files": [{"name": one.name, "bytes": one.size, "sha256": one.sha256 or None} for one in plan.files],
        "bytes": sum(one.size for one in plan.files),
        "missing_bytes": plan.left_bytes(plan.missing()),
    }


def _lines(plan: Plan, *, dry: bool) -> list[str]:
    size = fmt.size(sum(one.size for one in plan.files))
    pinned = f'model = "{plan.hub_id}{REVISION_MARK}{plan.commit}"'
    if dry:
        rows = [f"  {fmt.size(one.size):>10}  {safe_text(one.name, 100)}" for one in plan.files]
        return [f"{plan.hub_id} at {plan.commit}: {len(plan.files)} files, {size}", *rows]
    where = safe_text(plan.snapshot, 400)
    return [f"{plan.hub_id}: {len(plan.files)} files, {size}, verified, in {where}", f"pin it in a recipe: {pinned}"]


@dataclass
class _Line:
    """The line that shows how far a download is."""

    live: bool
    started_s: float = field(default_factory=time.monotonic)
    shown_s: float = 0.0

    def show(self, done: int, total: int) -> None:
        """Print it on a terminal, a few times a second."""
        now = time.monotonic()
        if not self.live or (now - self.shown_s < _SHOWN_EVERY_S and done < total):
            return
        self.shown_s = now
        took = now - self.started_s
        rate = done / took if took > 0 else 0.0
        left = f", {fmt.duration((total - done) / rate)} left" if rate and done < total else ""
        say(f"{fmt.size(done)} of {fmt.size(total)}, {fmt.size(rate)}/s{left}", end="", clear=True)
        if done >= total:
            say("", end="", clear=True)
