"""A batch script with which Slurm starts a recipe on several hosts; nothing here talks to Slurm."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from recipes.load import LoadedRecipe
from recipes.problems import OperatorError, shown
from recipes.stages.launch.fields import Launch, launch_of

_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:,@-]{0,99}")
_TIME = re.compile(r"([0-9]{1,3}-)?[0-9]{1,3}(:[0-9]{2}){0,2}")
STOPPED = 130


@dataclass(frozen=True)
class SlurmOptions:
    """What Slurm is asked for beside the recipe's processes; empty or None: not asked for.

    Attributes:
        time: the limit, as sbatch has it: minutes, HH:MM:SS or DAYS-HH.
        partition: where the job runs.
        account: who is charged.
        cpus: processors of each host; without a number, each host is the job's alone.
        gpus: GPUs of each host; None: one for each process.
    """

    time: str = ""
    partition: str = ""
    account: str = ""
    cpus: int | None = None
    gpus: int | None = None

    def require_words(self) -> None:
        """Refuse a value that could be more than one word of the script.

        Raises:
            OperatorError: one of them.
        """
        if self.time and _TIME.fullmatch(self.time) is None:
            raise OperatorError(f"--time — got {shown(self.time)}; allowed MINUTES, HH:MM:SS or DAYS-HH", "")
        for option, value in (("--partition", self.partition), ("--account", self.account)):
            if value and _WORD.fullmatch(value) is None:
                raise OperatorError(f"{option} — got {shown(value)}; allowed letters, digits and ._:,@-", "")


def slurm_script(loaded: LoadedRecipe, recipe: Path, sets: tuple[str, ...], options: SlurmOptions) -> str:
    """The script.

    Raises:
        OperatorError: an option is not one word, or stages ask for different numbers of hosts.
    """
    options.require_words()
    launches = {stage.name: launch for stage in loaded.recipe.stage if (launch := launch_of(stage)).world_size > 1}
    nodes = {launch.nodes for launch in launches.values()} or {1}
    if len(nodes) > 1:
        counts = ", ".join(f"{name}: {launch.nodes}" for name, launch in launches.items())
        raise OperatorError(
            f"launch.nodes — a job has one number of hosts; got {counts}", "give all these stages the same nodes"
        )
    count = nodes.pop()
    head = ["#!/bin/bash", *_directives(loaded.recipe.name, count, _most(launches), options), "", "set -u"]
    command = ["cockpit", "run", str(recipe.absolute()), *(word for one in sets for word in ("--set", one))]
    if count == 1:
        return "\n".join([*head, f"exec srun {_words(command)}", ""])
    ports = {name: launch.rendezvous.rpartition(":")[2] for name, launch in launches.items()}
    meet = "".join(f' --set "{name}.launch.rendezvous=\\"$first:{port}\\""' for name, port in ports.items())
    return "\n".join(
        [
            *head,
            "# Every host starts the same recipe; torchrun's processes meet on the first host of the job.",
            'first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
            f"run=({_words(command)}{meet})",
            f"# {STOPPED}: this host's run ends as stopped when the run of another host has the results.",
            'srun bash -c \'"$@"; status=$?; '
            f'if [ "$status" -eq {STOPPED} ]; then exit 0; fi; exit "$status"\' run "${{run[@]}}"',
            "",
        ]
    )


def _directives(name: str, nodes: int, processes: int, options: SlurmOptions) -> list[str]:
    gpus = processes if options.gpus is None else options.gpus
    asked = {
        "job-name": name,
        "nodes": str(nodes),
        "ntasks-per-node": "1",
        "gpus-per-node": str(gpus) if gpus else "",
        "cpus-per-task": "" if options.cpus is None else str(options.cpus),
        "time": options.time,
        "partition": options.partition,
        "account": options.account,
        "output": f"{name}-%j.log",
    }
    lines = [f"#SBATCH --{key}={value}" for key, value in asked.items() if value]
    return lines if options.cpus is not None else [*lines, "#SBATCH --exclusive"]


def _most(launches: dict[str, Launch]) -> int:
    return max((launch.processes for launch in launches.values()), default=1)


def _words(command: list[str]) -> str:
    return " ".join(shlex.quote(word) for word in command)
