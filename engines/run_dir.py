"""The names inside a run directory. No other module spells them (a test checks that).

The names inside a finished folder belong to the module of its format: `engines.artifacts.manifest`,
`engines.artifacts.adapter_folder`, `engines.data.shards`.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from engines.files import file_sha256, fsync_folder, open_regular, read_regular_text, write_durably
from engines.json_text import read_json

FORMAT = 1
ROOM_BYTES = 65_536
"""The size of the largest record of a journal."""
RUN_ID = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
RECIPE_TOML = "recipe.toml"
STAGES = "stages"
FIXTURE_FILE = "fixture.json"
"""In an export's output: the answers that another runtime must give."""
REFUSED_FILES = "refused"
"""In an export's output: the folder of files that a proof refused, kept for inspection."""
_RUN_JSON = "run.json"
_FORMER_IDS = "former_ids"
_RECIPE_SHA256 = "recipe_sha256"
_MAX_NOTE_BYTES = 4096
_MINUTE = "%Y%m%d-%H%M"
_STAMPED = re.compile(r"[0-9]{8}-[0-9]{4}-")
_FUTURE = timedelta(hours=36)
"""A clock that was wrong by a day, or by a time zone, is followed; one that was wrong by years is not."""
_CHECKPOINT = re.compile(r"step-(\d{1,12})")


class RunDirError(Exception):
    """A run directory cannot be created, read or locked; the message is for the operator."""


@dataclass(frozen=True)
class RunDir:
    """One run's directory. The properties are paths only: they read and write nothing."""

    root: Path

    @property
    def id(self) -> str:
        return self.root.name

    @property
    def run_json(self) -> Path:
        return self.root / _RUN_JSON

    @property
    def recipe_toml(self) -> Path:
        return self.root / RECIPE_TOML

    @property
    def recipe_json(self) -> Path:
        return self.root / "recipe.json"

    def replaced_recipe_json(self, number: int) -> Path:
        """A recipe.json that a change at a resume replaced; number 1 is the one that was launched."""
        return self.root / f"recipe.{number}.json"

    @property
    def launch_token(self) -> Path:
        """The random token of the launch; this user's private records have its hash."""
        return self.root / "launch.token"

    @property
    def plan_json(self) -> Path:
        return self.root / "plan.json"

    @property
    def journal(self) -> Path:
        return self.root / "journal.jsonl"

    @property
    def journal_parts(self) -> Path:
        """Journals of ranks above 0 and of other hosts."""
        return self.root / "journal.d"

    @property
    def fifo(self) -> Path:
        return self.root / "live.fifo"

    @property
    def control(self) -> Path:
        return self.root / "control"

    @property
    def supervisor_log(self) -> Path:
        return self.root / "supervisor.log"

    @property
    def supervisor_lock(self) -> Path:
        return self.root / "supervisor.lock"

    def end_command(self, number: int, suffix: str) -> Path:
        """A file of the command for the end of the operator's start of this number: what it reads, or prints."""
        return self.root / "commands" / f"{number}.{suffix}"

    @property
    def exit_json(self) -> Path:
        return self.root / "exit.json"

    def verdict(self, file_sha256: str, own_sha256: str) -> Path:
        """A verdict on a file with this SHA-256, by its own; a later one does not replace it."""
        return self.root / "verdicts" / f"{file_sha256}-{own_sha256[:16]}.json"

    def verdicts_on(self, file_sha256: str) -> list[Path]:
        """All verdicts on a file with this SHA-256."""
        return sorted((self.root / "verdicts").glob(f"{file_sha256}-*.json"))

    def shipped(self, name: str) -> Path:
        """The folder of the report about a file."""
        return self.root / "ship" / name

    @property
    def note(self) -> Path:
        """One line of the operator's about the run."""
        return self.root / "note.txt"

    @property
    def stages(self) -> Path:
        return self.root / STAGES

    def stage_dir(self, stage: str) -> Path:
        return self.stages / stage

    def attempt_dir(self, stage: str, attempt: int) -> Path:
        return self.stage_dir(stage) / str(attempt)

    def out(self, stage: str) -> Path:
        """The stage's output; it exists only when it is complete."""
        return self.stage_dir(stage) / "out"

    def kept_answers(self, stage: str, identity: Mapping[str, Any]) -> Path:
        """The answers of one model to a stage's test rows, which every attempt continues."""
        text = json.dumps(identity, sort_keys=True)
        return self.stage_dir(stage) / f"answers-{hashlib.sha256(text.encode()).hexdigest()[:16]}.jsonl"

    def kept_verdicts(self, stage: str) -> Path:
        """The verdicts of a judge on the answers to a stage's test rows, which every attempt continues."""
        return self.stage_dir(stage) / "verdicts.jsonl"

    def replaced_outs(self, stage: str) -> list[Path]:
        """Outputs that a rerun of the stage replaced, by name."""
        return sorted(self.stage_dir(stage).glob("out.*"))

    def all_outs(self, *, replaced: bool = False) -> list[Path]:
        """The `out` of every stage that has one, by the stage's name; on request also those that a rerun replaced. None
        if the folder may not be opened."""
        try:
            return sorted(self.stages.glob("*/out*" if replaced else "*/out"))
        except PermissionError:
            return []

    def closed_to_us(self) -> Path | None:
        """The folder or the journal, if it is there and this user may not read it; else None.

        A journal that cannot be opened has the same content for a reader as none, and says nothing about the run.
        """
        if not os.access(self.root, os.X_OK, effective_ids=True):
            return self.root
        there = os.path.exists(self.journal)  # noqa: PTH110 - never raises; a link to nothing is no journal
        return self.journal if there and not os.access(self.journal, os.R_OK, effective_ids=True) else None

    def draft_out(self, stage: str, attempt: int) -> Path:
        """Where the attempt's engine writes what becomes `out`."""
        return self.attempt_dir(stage, attempt) / "out.tmp"

    def refused_out(self, stage: str, attempt: int) -> Path:
        """An attempt's output that a gate refused, kept for inspection."""
        return self.attempt_dir(stage, attempt) / "refused"

    def work(self, stage: str, attempt: int) -> Path:
        """The attempt's scratch folder."""
        return self.attempt_dir(stage, attempt) / "work"

    def tensorboard(self, stage: str) -> Path:
        """The folder of the event files of all attempts of a stage."""
        return self.stage_dir(stage) / "tensorboard"

    def wandb(self, stage: str) -> Path:
        """The folder in which W&B keeps the runs of all attempts of a stage."""
        return self.stage_dir(stage) / "wandb"

    def mlflow(self, stage: str) -> Path:
        """The folder in which MLflow keeps the runs of all attempts of a stage."""
        return self.stage_dir(stage) / "mlflow"

    def stage_json(self, stage: str, attempt: int) -> Path:
        return self.attempt_dir(stage, attempt) / "stage.json"

    def console_log(self, stage: str, attempt: int) -> Path:
        return self.attempt_dir(stage, attempt) / "console.log"

    def rank_journal(self, stage: str, attempt: int, rank: int) -> Path:
        """The journal of a process above rank 0."""
        return self.journal_parts / f"{stage}-{attempt}-rank{rank}.jsonl"

    def rank_console(self, stage: str, attempt: int, rank: int) -> Path:
        """What a process above rank 0 prints."""
        return self.attempt_dir(stage, attempt) / rank_console_name(rank)

    def ranks_json(self, stage: str, attempt: int) -> Path:
        """How the attempt's processes ended, in that order, as the process that started them saw it."""
        return self.attempt_dir(stage, attempt) / "ranks.json"

    def torchrun_logs(self, stage: str, attempt: int) -> Path:
        """Where torchrun keeps the error files of the attempt's processes, instead of the machine's /tmp."""
        return self.attempt_dir(stage, attempt) / "torchrun"

    def inputs_json(self, stage: str, attempt: int) -> Path:
        """The files that the attempt's engine read, with their SHA-256."""
        return inputs_record_of(self.attempt_dir(stage, attempt))

    def engine_lock(self, stage: str, attempt: int) -> Path:
        return engine_lock_of(self.attempt_dir(stage, attempt))

    def engine_json(self, stage: str, attempt: int) -> Path:
        """The identity of the attempt's engine process."""
        return self.attempt_dir(stage, attempt) / "engine.json"

    def checkpoints(self, stage: str, attempt: int) -> Path:
        return checkpoints_of(self.attempt_dir(stage, attempt))

    def checkpoint(self, stage: str, attempt: int, step: int) -> Path:
        return self.checkpoints(stage, attempt) / checkpoint_name(step)

    def relative(self, path: Path) -> str:
        """A path inside the run, relative to its root as in journals; a path outside the run stays absolute."""
        with suppress(ValueError):
            return str(path.relative_to(self.root))
        return str(path)

    def read_run_json(self) -> dict[str, Any]:
        """run.json.

        Raises:
            RunDirError: it is missing or not JSON.
        """
        try:
            value = read_json(self.run_json)
        except (OSError, ValueError) as error:
            raise RunDirError(f"{self.root} is not a run directory: run.json: {error}") from error
        if not isinstance(value, dict):
            raise RunDirError(f"{self.root} is not a run directory: run.json is not an object")
        return value

    def recipe_was_edited(self) -> bool:
        """Whether recipe.toml is not the file of the launch any more: the run uses recipe.json. False for a run of an
        older version, which did not record its hash."""
        try:
            recorded = self.read_run_json().get(_RECIPE_SHA256)
            return recorded is not None and file_sha256(self.recipe_toml) != recorded
        except (OSError, RunDirError):
            return False

    def read_note(self) -> str:
        """The operator's note in one line, of at most 500 characters; empty without one, or if it cannot be read. Not
        safe to print before `safe_text`."""
        try:
            text = read_regular_text(self.note, _MAX_NOTE_BYTES, errors="replace")
        except (OSError, ValueError):
            return ""
        return " ".join(text.split())[:500]

    def has_room(self) -> bool:
        """Whether a file of the size of the largest record can be written here; it is removed again."""
        probe = self.root / f".room-{os.getpid()}"
        try:
            fd = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                return os.write(fd, bytes(ROOM_BYTES)) == ROOM_BYTES
            finally:
                os.close(fd)
        except OSError:
            return False
        finally:
            with suppress(OSError):
                probe.unlink()

    def require_writable_format(self) -> None:
        """Refuse to write into a directory that a newer Cockpit created.

        Raises:
            RunDirError: its format is higher than this version's.
        """
        found = self.read_run_json().get("format")
        if not isinstance(found, int) or found > FORMAT:
            raise RunDirError(
                f"{self.root}: run.json  format — newer than this Cockpit supports; got {found}; allowed up to "
                f"{FORMAT}; the run can be shown and replayed, but not resumed; install a newer Cockpit to resume it"
            )

    def stage_names(self) -> list[str]:
        """Names of the stages that have a folder."""
        try:
            return sorted(entry.name for entry in os.scandir(self.stages) if entry.is_dir(follow_symlinks=False))
        except OSError:
            return []

    def attempts(self, stage: str) -> list[int]:
        """Attempt numbers that have a folder, ascending."""
        return [int(folder.name) for folder in attempt_folders(self.stage_dir(stage))]


def is_run_dir(path: Path) -> bool:
    """Whether a folder is a run directory."""
    return (path / _RUN_JSON).is_file()


def attempt_folders(stage_dir: Path) -> list[Path]:
    """The folders of a stage's attempts, in ascending order."""
    try:
        folders = [Path(entry.path) for entry in os.scandir(stage_dir) if entry.is_dir()]
    except OSError:
        return []
    return sorted((folder for folder in folders if folder.name.isdigit()), key=lambda folder: int(folder.name))


def engine_lock_of(attempt_dir: Path) -> Path:
    """The lock that an attempt's engine holds."""
    return attempt_dir / "engine.lock"


def rank_console_name(rank: int) -> str:
    """The file, beside an attempt's `stage.json`, into which a process of a rank above 0 prints."""
    return f"console.rank{rank}.log"


def rank_lock_of(attempt_dir: Path, rank: int) -> Path:
    """The lock that an attempt's process of a rank above 0 holds."""
    return attempt_dir / f"engine.rank{rank}.lock"


def inputs_record_of(attempt_dir: Path) -> Path:
    """The record of the files that an attempt's engine read."""
    return attempt_dir / "inputs.json"


def checkpoints_of(attempt_dir: Path) -> Path:
    """The folder of an attempt's checkpoints."""
    return attempt_dir / "checkpoints"


def checkpoint_name(step: int) -> str:
    """The folder name of a step's checkpoint."""
    return f"step-{step}"


def checkpoint_step(name: str) -> int | None:
    """The step in the name of a checkpoint's folder; None for any other folder."""
    match = _CHECKPOINT.fullmatch(name)
    return int(match[1]) if match else None


def taken_requests(control: Path) -> Path:
    """The folder to which an engine moves the requests that it takes."""
    return control / "done"


Part = Literal["checkpoints", "outputs", "replaced outputs", "journals", "logs", "other"]
"""What a file of a run belongs to, for lists of sizes."""


def part_of(relative: tuple[str, ...]) -> Part:
    """What a file belongs to, by its path below the run's folder, in parts."""
    match relative:
        case (name, *_) if name.startswith("journal."):
            return "journals"
        case ("supervisor.log",) | (_, _, _, "console.log"):
            return "logs"
        case (_, _, _, name) if name.startswith("console.rank"):
            return "logs"
        case (_, _, _, "checkpoints", *_):
            return "checkpoints"
        case (_, _, "out", *_):
            return "outputs"
        case (_, _, name, *_) if name.startswith("out."):
            return "replaced outputs"
        case _:
            return "other"


def former_ids(run_root: Path) -> list[str]:
    """The ids that a run had before it was renamed, oldest first; empty if `run.json` cannot be read."""
    try:
        value = read_json(run_root / _RUN_JSON).get(_FORMER_IDS)
    except (OSError, ValueError, AttributeError):
        return []
    return [name for name in value if isinstance(name, str)] if isinstance(value, list) else []


def rename_run(run: RunDir, new_id: str) -> RunDir:
    """Rename a run's folder; `run.json` keeps its earlier ids, so that references to them are found.

    The caller knows that the run is not running. A kill between the two writes leaves the old name, which then is in
    the list of earlier ids too.

    Raises:
        RunDirError: `run.json` cannot be read, or the name is taken.
        OSError: the folder cannot be written.
    """
    target = run.root.with_name(new_id)
    if target.exists() or target.is_symlink():
        raise RunDirError(f"{target} exists")
    facts = run.read_run_json()
    facts = {**facts, "id": new_id, _FORMER_IDS: list(dict.fromkeys([*former_ids(run.root), run.id]))}
    write_durably(run.run_json, json.dumps(facts, indent=1).encode())
    run.root.rename(target)
    fsync_folder(target.parent)
    return RunDir(target)


def run_named(home: Path, run_id: str) -> Path:
    """The folder of a run in a folder of runs, by its id or by an id that it had before it was renamed."""
    wanted = home / run_id
    if not is_run_dir(wanted):
        for entry in _folders(home):
            if run_id in former_ids(entry):
                return entry
    return wanted


def _folders(home: Path) -> list[Path]:
    try:
        found = [entry.name for entry in os.scandir(home) if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []
    return [home / name for name in sorted(found) if not name.startswith(".")]


def place_now(recorded: Path, near: Path) -> Path:
    """The present place of a run's folder that was recorded by its absolute path; the run may have been moved since.

    Args:
        recorded: the recorded path, …/RUN/stages/….
        near: a folder that was moved together with it: of the same run, or of a run beside it.

    Returns:
        The recorded path if it exists, else the same run and stage in a folder above `near`, also under the name that
        the run has been given since, else the recorded path.
        A caller that knows the folder's manifest must compare it: another run may have the same name.
    """
    parts = recorded.parts
    if recorded.exists() or STAGES not in parts[1:]:
        return recorded
    run = len(parts) - 1 - parts[::-1].index(STAGES) - 1
    for above in near.absolute().parents:
        found = above.joinpath(*parts[run:])
        if found.is_dir():
            return found
    if run < 1:
        return recorded
    beside = (above.parent for above in near.absolute().parents if is_run_dir(above))
    for home in dict.fromkeys([recorded.parents[len(parts) - run - 1], *beside]):
        found = run_named(home, parts[run]).joinpath(*parts[run + 1 :])
        if found.is_dir():
            return found
    return recorded


def create_run_dir(
    runs_root: Path,
    *,
    name: str,
    recipe: str,
    recipe_toml: str,
    recipe_json: dict[str, Any],
    plan_json: dict[str, Any],
    version: str,
    recipe_path: str | None = None,
    parent: str | None = None,
    sets: Sequence[str] = (),
    seal: Callable[[RunDir], None] = lambda _draft: None,
) -> RunDir:
    """Create a run directory atomically: it is filled under a temporary name and renamed.

    Run ids sort by time and are readable: `20261120-2130-atlas`; a second run in the same minute gets `-2`. `sets` are
    the overrides of the launch, as typed: `recipe_toml` is the recipe as given, without them.
    `seal` is called with the filled draft, before it exists under its name; what it raises leaves no folder behind.

    Raises:
        RunDirError: the root cannot be written.
    """
    os.umask(0o077)
    temporary = runs_root / f".new-{os.getpid()}-{time.monotonic_ns()}"
    try:
        runs_root.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        draft = RunDir(temporary)
        for folder in (taken_requests(draft.control), draft.stages, draft.journal_parts):
            folder.mkdir(parents=True)
        draft.journal.touch()
        with suppress(OSError):  # a file system without pipes: screens follow the journal alone
            os.mkfifo(draft.fifo, 0o600)
        write_durably(draft.recipe_toml, recipe_toml.encode())
        write_durably(draft.recipe_json, json.dumps(recipe_json, indent=1).encode())
        write_durably(draft.plan_json, json.dumps(plan_json, indent=1).encode())
        seal(draft)
        stamp = _stamp(runs_root, datetime.now())  # noqa: DTZ005 - ids have the local time
        for run_id in _candidate_ids(f"{stamp}-{name}"):
            target = runs_root / run_id
            if target.exists():
                continue
            facts = {"format": FORMAT, "id": run_id, "recipe": recipe, "parent": parent, "version": version}
            facts |= {"recipe_path": recipe_path, "created_t": time.time()}  # noqa: TID251 - a wall-clock fact
            facts |= {"sets": list(sets), _RECIPE_SHA256: hashlib.sha256(recipe_toml.encode()).hexdigest()}
            write_durably(draft.run_json, json.dumps(facts, indent=1).encode())
            try:
                temporary.rename(target)
            except OSError:  # another launch took the name between the check and the rename
                continue
            fsync_folder(runs_root)
            return RunDir(target)
        raise AssertionError("unreachable: candidate ids are endless")
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise RunDirError(f"cannot create a run directory in {runs_root}: {error.strerror or error}") from error
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _stamp(runs_root: Path, now: datetime) -> str:
    """The minute for a new id. It is later than that of every run here, also after the clock was set back: `last` is
    the run that was created last. A run that claims to be from more than `_FUTURE` ahead does not count."""
    stamp, latest = now.strftime(_MINUTE), (now + _FUTURE).strftime(_MINUTE)
    stamps = [entry.name[: len(stamp)] for entry in os.scandir(runs_root) if _STAMPED.match(entry.name)]
    newest = max((found for found in stamps if found <= latest), default="")
    if newest < stamp or (newest == stamp and not _has_later(runs_root, stamp, now)):
        return stamp
    try:
        return (datetime.strptime(newest, _MINUTE) + timedelta(minutes=1)).strftime(_MINUTE)  # noqa: DTZ007 - as above
    except ValueError:  # digits that are no time
        return stamp


def _has_later(runs_root: Path, stamp: str, now: datetime) -> bool:
    """Whether a run of this minute was created at a time that is yet to come."""
    for found in runs_root.glob(f"{stamp}-*/{_RUN_JSON}"):
        with suppress(OSError):
            if found.stat().st_mtime > now.timestamp():
                return True
    return False


def _candidate_ids(base: str) -> Iterator[str]:
    yield base
    number = 1
    while True:
        number += 1
        yield f"{base}-{number}"


class Lock:
    """An flock that records its holder. The process *and its forks* hold it until the last of them ends."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd: int | None = None

    def acquire(self, holder: dict[str, Any]) -> bool:
        """Take the lock without waiting, and record the holder. False when another process holds it."""
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        if not _flocked(fd):
            os.close(fd)
            return False
        self._fd = fd
        with suppress(OSError):  # a full disk must not prevent supervision
            os.ftruncate(fd, 0)
            os.pwrite(fd, json.dumps(holder).encode(), 0)
        return True

    def release(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def _flocked(fd: int) -> bool:
    """Take an exclusive flock; False if another process holds one. A process that only looks holds it for a moment."""
    while True:
        if _flock(fd, fcntl.LOCK_EX):
            return True
        if not _flock(fd, fcntl.LOCK_SH):  # succeeds beside `lock_is_held`, not beside a holder
            return False


def _flock(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def lock_is_held(path: Path) -> bool:
    """Whether a process holds the lock now. Taking and dropping it is the only reliable check; it writes nothing."""
    try:
        file = open_regular(path, follow=False)
    except OSError:
        return False
    with file:
        return not _flock(file.fileno(), fcntl.LOCK_SH)


def lock_holder(path: Path) -> dict[str, Any]:
    """What the last holder recorded about itself; empty when unreadable."""
    try:
        value = read_json(path)
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
