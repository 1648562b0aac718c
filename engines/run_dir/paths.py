"""The names inside a run directory. No other module spells them (a test checks that).

The names inside a finished folder belong to the module of its format: `engines.artifacts.manifest`,
`engines.artifacts.adapter_folder`, `engines.data.shards`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from engines.files import file_sha256, read_regular_text
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
PARTS = "parts"
RUN_JSON = "run.json"
RECIPE_SHA256 = "recipe_sha256"
_MAX_NOTE_BYTES = 4096
_DRAFT_OUT, _WORK = "out.tmp", "work"
_SCRATCH = re.compile(r"(out\.tmp|work)(\.rank\d+)?")
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
        return self.root / RUN_JSON

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
        if the folder may not be opened, or is moved or removed meanwhile."""
        try:
            return sorted(self.stages.glob("*/out*" if replaced else "*/out"))
        except OSError:
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
        return self.attempt_dir(stage, attempt) / _DRAFT_OUT

    def refused_out(self, stage: str, attempt: int) -> Path:
        """An attempt's output that a gate refused, kept for inspection."""
        return self.attempt_dir(stage, attempt) / "refused"

    def work(self, stage: str, attempt: int) -> Path:
        """The attempt's scratch folder."""
        return self.attempt_dir(stage, attempt) / _WORK

    def parts(self, stage: str, attempt: int) -> Path:
        """In the scratch folder: finished parts of the stage's work, which a later attempt takes."""
        return self.work(stage, attempt) / PARTS

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
            recorded = self.read_run_json().get(RECIPE_SHA256)
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


def scratch_of(attempt_dir: Path) -> list[Path]:
    """The folders in which the processes of an attempt write what is not final: unfinished output and scratch."""
    found = [path for name in (_DRAFT_OUT, _WORK) for path in attempt_dir.glob(f"{name}*")]
    return sorted(path for path in found if _SCRATCH.fullmatch(path.name))


def is_run_dir(path: Path) -> bool:
    """Whether a folder is a run directory."""
    return (path / RUN_JSON).is_file()


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


def locks_of(attempt_dir: Path) -> list[Path]:
    """The locks of all processes of an attempt; each is held as long as its process lives."""
    return [engine_lock_of(attempt_dir), *sorted(attempt_dir.glob("engine.rank*.lock"))]


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
