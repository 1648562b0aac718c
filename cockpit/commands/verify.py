"""`cockpit verify`: check an artifact and its ancestors by SHA-256, or compare what two runs read. Changes nothing."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import msgspec

from cockpit.command_line.arguments import add_json
from cockpit.command_line.parser import CommandParser
from cockpit.forms.step_reader import changed_inputs, first_difference, segments_of, trained_stages
from cockpit.runs.find import find_run, run_ids, runs_root
from cockpit.runs.verify import Link, Verdict, check_descent, check_file, made_from
from cockpit.schedule.resolved_recipe import RunRecipe
from cockpit.shipping.verdict import FoundVerdict, find_verdict, read_key
from cockpit.text.output import print_json, print_out
from cockpit.text.safe_text import safe_text
from engines.artifacts.manifest import MANIFEST
from engines.files import file_sha256
from engines.look.step_answer import Difference
from engines.run_dir.paths import RunDir, RunDirError, is_run_dir
from engines.words import ExitCode
from recipes.problems import OperatorError, printable

_MARKS: dict[Verdict, str] = {"whole": "✓", "damaged": "✗", "gone": "·", "known by name": "·"}
_SHOWN: dict[Verdict, str] = {
    "whole": "intact",
    "damaged": "damaged",
    "gone": "not found",
    "known by name": "recorded by name only, not checked",
}


def declare(parser: CommandParser) -> None:
    """The arguments of `cockpit verify`."""
    parser.add_argument(
        "artifact", metavar="RUN|RUN:STAGE|DIR|FILE", help="a run, a stage, or a folder or file that a stage wrote"
    )
    parser.add_argument(
        "other",
        nargs="?",
        metavar="RUN",
        help="a second run: compare the tokens that both trained on, and show where they first differ",
    )
    parser.add_argument("--key", metavar="FILE", help="the secret with which `cockpit ship` signed a file's verdict")
    add_json(parser)
    parser.exit_codes = {
        ExitCode.DONE: "nothing is damaged; the two runs read the same tokens",
        ExitCode.FAILED: "something is damaged, or a file's verdict is another file's or was edited; the two runs read"
        " different tokens, or files have changed since",
        ExitCode.MISTAKE: "there is nothing to check",
        ExitCode.REFUSED: "nothing is damaged, and the verdict on the file is that it must not ship",
    }
    parser.examples = (
        ("cockpit verify last", "Check every finished stage of the newest run."),
        ("cockpit verify last 20261120-2130-llama", "Compare the tokens that two runs trained on, step by step."),
        ("cockpit verify ~/models/demo-Q4_K_M.gguf", "Find the run that a copied file comes from, and check it."),
    )


def run(args: argparse.Namespace) -> ExitCode:
    """Check and print; exit code 1 if something is damaged."""
    root = runs_root(args.runs_dir)
    if args.other is not None:
        return _compare(find_run(root, args.artifact), find_run(root, args.other), as_json=args.json)
    key = read_key(args.key)
    verdict = _verdict(root, args.artifact, key)
    links: dict[str, Link] = {}
    for folder in _folders(root, args.artifact, verdict):
        for link in _links(args.artifact, folder, root):
            if link.id not in links:
                links[link.id] = link
                if not args.json:
                    print_out(_line(link), flush=True)
    damaged = [link for link in links.values() if link.verdict == "damaged"]
    if args.json:
        listed = [link.record() for link in links.values()]
        shown = {} if verdict is None else {"verdict": verdict.record()}
        print_json({"whole": not damaged, "links": listed, **shown})
    else:
        print_out("\n" + _summary(links.values()))
        if verdict is not None:
            print_out("\n".join(_of_verdict(verdict)))
    if damaged or (verdict is not None and verdict.passed is None):
        return ExitCode.FAILED
    return ExitCode.DONE if verdict is None or verdict.passed else ExitCode.REFUSED


def _links(artifact: str, folder: Path, root: Path) -> Iterator[Link]:
    """What is checked: a given file that its stage did not write, the folder, and its ancestors."""
    file = Path(artifact).expanduser().absolute()
    stranger = check_file(file, folder) if file.is_file() else None
    if stranger is not None:
        yield stranger
    yield from check_descent(folder, [root])


def _folders(root: Path, artifact: str, verdict: FoundVerdict | None) -> list[Path]:
    """The folders to check; none for a file of a run that is not here and that has its verdict beside it."""
    try:
        return folders_of(root, artifact)
    except OperatorError:
        if verdict is None:
            raise
        return []


def _verdict(root: Path, artifact: str, key: bytes | None) -> FoundVerdict | None:
    """The verdict on a file; None without one, or for a run or a folder."""
    file = Path(artifact).expanduser().absolute()
    if not file.is_file():
        return None
    inside = [RunDir(place) for place in file.parents if is_run_dir(place)]
    runs = [*inside, *(RunDir(root / name) for name in run_ids(root))]
    try:
        sha256 = file_sha256(file)
    except OSError as error:
        raise OperatorError(
            f"{printable(str(file), 400)} cannot be read: {error.strerror or error}", "ask its owner"
        ) from error
    return find_verdict(file, sha256, runs, key)


def _of_verdict(verdict: FoundVerdict) -> list[str]:
    if verdict.passed is None:
        return [f"✗ verdict {safe_text(verdict.path, 300)}", *(f"    {safe_text(p, 300)}" for p in verdict.problems)]
    checks = [one for one in verdict.body.get("checks", []) if isinstance(one, dict)]
    words = "may ship" if verdict.passed else "must not ship"
    lines = [f"{'✓' if verdict.passed else '✗'} verdict: the file {words}, by {len(checks)} checks"]
    lines += [
        f"    {safe_text(one.get('name', ''), 80)}: {safe_text(one.get('reason', ''), 300)}"
        for one in checks
        if one.get("reason")
    ]
    return [*lines, *(f"    {safe_text(note, 300)}" for note in verdict.notes)]


def _compare(one: RunDir, other: RunDir, *, as_json: bool) -> ExitCode:
    """Compare the streams of tokens of two runs, stage by stage.

    Raises:
        OperatorError: they have no trained stage in common.
    """
    there = trained_stages(other)
    common = [stage for stage in trained_stages(one) if stage in there]
    if not common:
        raise OperatorError(
            f"{one.id} and {other.id} have no trained stage of the same name",
            f"{one.id} has {', '.join(trained_stages(one)) or 'none'}; {other.id} has {', '.join(there) or 'none'}",
        )
    different = False
    for stage in common:
        streams = segments_of(one, stage), segments_of(other, stage)
        lasts = [max(segment.last for segment in segments) for segments in streams]
        found = first_difference(*streams)
        changed = [changed_inputs(one, stage), changed_inputs(other, stage)]
        different = different or found is not None or any(changed)
        if as_json:
            difference = None if found is None else msgspec.to_builtins(found)
            same = None if any(changed) else found is None
            print_json({"stage": stage, "steps": lasts, "same": same, "difference": difference, "changed": changed})
        else:
            print_out("\n".join([*_changed_lines(stage, changed), _stream_line(stage, lasts, found, any(changed))]))
    return ExitCode.FAILED if different else ExitCode.DONE


def _changed_lines(stage: str, changed: list[list[str]]) -> list[str]:
    """What each run has read that is not there any more as it was."""
    lines = [
        f"    {'first' if number == 0 else 'second'} run: {safe_text(phrase, 400)}"
        for number, phrases in enumerate(changed)
        for phrase in phrases
    ]
    if lines:
        lines.insert(0, f"✗ {stage}: not shown, because files have changed since the training read them")
    return lines


def _stream_line(stage: str, lasts: list[int], found: Difference | None, changed: bool) -> str:
    now = " of the present files" if changed else ""
    if found is None:
        more = "" if lasts[0] == lasts[1] else f"; one has {lasts[0]} steps and the other {lasts[1]}"
        return f"{'·' if changed else '✓'} {stage}: the same tokens{now} at each of {min(lasts)} steps{more}"
    lines = [f"✗ {stage}: from step {found.step} on, {found.why}{' in' + now[3:] if changed else ''}"]
    for number, name in enumerate(found.names):
        place = f", byte {found.bytes[number]} of {safe_text(found.files[number], 100)}" if found.files[number] else ""
        lines.append(f"    {'first' if number == 0 else 'second'} run: {safe_text(name, 200)}{place}")
    return "\n".join(lines)


def folders_of(root: Path, artifact: str) -> list[Path]:
    """The finished folders to check, the last stage first.

    Raises:
        OperatorError: there is no finished folder.
    """
    path = Path(artifact).expanduser()
    if path.is_file():
        return [made_from(path.absolute(), [root])]
    if path.is_dir() and not is_run_dir(path):
        return [path.absolute()]
    run_part, colon, stage = artifact.rpartition(":")
    if colon and run_part and os.sep not in stage:
        found = find_run(root, run_part)
        folders = [found.out(stage)]
    else:
        found = find_run(root, artifact)
        folders = _last_stage_first(found)
    folders = [folder for folder in folders if (folder / MANIFEST).is_file()]
    if not folders:
        raise OperatorError(f"{printable(artifact, 300)} has no finished output", f"see: cockpit show {found.id}")
    return folders


def _last_stage_first(run: RunDir) -> list[Path]:
    """The outputs of a run in the order of its recipe, not of the times of files, which copies and clocks change."""
    outs = run.all_outs()
    with suppress(RunDirError):
        order = [run.out(stage) for stage in RunRecipe.read(run).order]
        outs.sort(key=lambda out: order.index(out) if out in order else -1)
    return outs[::-1]


def _line(link: Link) -> str:
    text = f"{_MARKS[link.verdict]} {link.kind:<10.10}  {link.id[:12]}  {safe_text(link.name, 120)}"
    if link.verdict != "whole":
        text += f"  {_SHOWN[link.verdict]}"
    return "\n".join([text, *(f"    {safe_text(problem, 300)}" for problem in link.problems)])


def _summary(links: Iterable[Link]) -> str:
    counted = {verdict: sum(link.verdict == verdict for link in links) for verdict in _MARKS}
    return ", ".join(f"{count} {_SHOWN[verdict]}" for verdict, count in counted.items() if count)
