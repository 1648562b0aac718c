"""The table `[stage.launch]`: over how many processes a stage computes, and how they share the work."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import model_validator

from recipes.problems import shown
from recipes.setting import setting
from recipes.stages.fields import StageFields, Strict

Strategy = Literal["single", "ddp", "fsdp2"]
SINGLE, DDP, FSDP2 = "single", "ddp", "fsdp2"
_ENDPOINT = re.compile(r"(\[[0-9A-Fa-f:.%a-z]{2,60}\]|[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?):([0-9]{1,5})")
"""HOST:PORT with a name, an IPv4 address, or an IPv6 address in brackets."""
_MOST_PORT = 65_535
_MOST_WORD = 4096
CONTAINERS = {"docker": "run", "podman": "run", "apptainer": "exec", "singularity": "exec"}
"""Programs that start a command in a container, with the word after which their options follow."""


class Launch(Strict):
    """Over which processes a stage computes (`[stage.launch]`)."""

    processes: int = setting(
        1,
        section="Launch",
        at_resume="change",
        ge=1,
        le=1024,
        help="Processes on each host, one for each GPU, that torchrun starts. A step of a training has the rows of all"
        " of them: per_device_train_batch_size * gradient_accumulation_steps * processes * nodes. An evaluation divides"
        " its rows over them.",
    )
    nodes: int = setting(
        1,
        section="Launch",
        at_resume="change",
        ge=1,
        le=1024,
        help="Hosts that compute together; each starts the same recipe.",
    )
    rendezvous: str = setting(
        "",
        section="Launch",
        at_resume="change",
        max_length=300,
        help="HOST:PORT at which the processes of all hosts find each other: an address of the first host. By"
        " default, a free port of this host.",
    )
    strategy: Strategy = setting(
        "single",
        section="Launch",
        at_resume="change",
        help="How processes share the work: with ddp each has the whole model, with fsdp2 each has a part of the"
        " weights, gradients and optimizer state. single is one process.",
    )

    launcher: list[str] = setting(
        default_factory=list,
        section="Launch",
        at_resume="change",
        max_length=100,
        help="Words before the command of the engine: a program that starts it, such as docker run IMAGE or numactl"
        " --cpunodebind=0. For docker, podman and apptainer, Cockpit adds the mounts, the user and the environment.",
    )

    @property
    def container(self) -> str:
        """The program that starts the engine in a container; empty without a container."""
        name = Path(self.launcher[0]).name if self.launcher else ""
        return name if name in CONTAINERS else ""

    @property
    def world_size(self) -> int:
        """Processes on all hosts together."""
        return self.processes * self.nodes

    @property
    def words(self) -> str:
        """`2 processes, ddp`, or `8 processes on 2 hosts, fsdp2`; empty for a single process."""
        if self.world_size == 1:
            return ""
        hosts = f" on {self.nodes} hosts" if self.nodes > 1 else ""
        return f"{self.world_size} processes{hosts}, {self.strategy}"

    def problems(self, able: tuple[str, ...], kind: str) -> Iterator[str]:
        """What does not fit together, each as `key — what; got …; allowed …`.

        Args:
            able: the strategies that the stage's engine has.
            kind: of the stage.
        """
        shared = [name for name in able if name != SINGLE]
        yield from self._launcher_problems()
        if self.strategy not in able:
            yield (
                f"launch.strategy — the engine of {kind} does not have it; got {self.strategy}; allowed:"
                f" {', '.join(able)}"
            )
        elif self.world_size > 1 and self.strategy == SINGLE:
            allowed = ", ".join(shared) if shared else f"processes = 1, because a {kind} stage computes in one process"
            yield f"launch.strategy — {self.world_size} processes need a strategy; got single; allowed: {allowed}"
        elif self.world_size == 1 and self.strategy != SINGLE:
            yield (
                f"launch.strategy — one process shares nothing; got {self.strategy}; allowed: single, or"
                " launch.processes of at least 2"
            )
        if self.rendezvous:
            match = _ENDPOINT.fullmatch(self.rendezvous)
            if match is None or not 0 < int(match[3]) <= _MOST_PORT:
                yield (
                    f"launch.rendezvous — not an address with a port; got {shown(self.rendezvous)}; allowed: HOST:PORT"
                    f" with a port up to {_MOST_PORT}, an IPv6 address in brackets"
                )
            elif self.world_size == 1:
                got = shown(self.rendezvous)
                yield f"launch.rendezvous — one process meets no other; got {got}; allowed: leave it out"
        elif self.nodes > 1:
            yield "launch.rendezvous — needed for several hosts; got none; allowed: HOST:PORT of the first host"

    def _launcher_problems(self) -> Iterator[str]:
        wrong = [word for word in self.launcher if not word or "\0" in word or len(word) > _MOST_WORD]
        if wrong:
            got = shown(wrong[0][:80])
            yield f"launch.launcher — not a word of a command; got {got}; allowed: words without a null character"
        elif self.launcher and "/" in self.launcher[0] and not self.launcher[0].startswith("/"):
            got = shown(self.launcher[0])
            yield f"launch.launcher — the program is neither a name nor a whole path; got {got}; allowed: /…/program"
        command = CONTAINERS.get(self.container)
        if command and command not in self.launcher[1:-1]:
            yield (
                f"launch.launcher — {self.container} needs {command} and an image; got {shown(self.launcher)}; allowed:"
                f' ["{self.container}", "{command}", …, "IMAGE"]'
            )


class LaunchFields(StageFields):
    """The table of a stage whose engine may compute in several processes."""

    strategies: ClassVar[tuple[str, ...]] = (SINGLE,)
    """What the engine of the stage can do; a recipe that asks for another is refused."""

    launch: Launch = setting(
        default_factory=Launch,
        section="Launch",
        at_resume="change",
        help="Over how many processes the stage computes.",
    )

    @model_validator(mode="after")
    def _a_launch_that_its_engine_has(self) -> LaunchFields:
        problems = [*self.launch.problems(self.strategies, self.kind), *self.launch_problems()]
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def launch_problems(self) -> Iterator[str]:
        """What the stage's own fields do not allow beside its launch."""
        yield from ()


def launch_of(stage: StageFields) -> Launch:
    """The launch of a stage; one process for a stage without the table."""
    return stage.launch if isinstance(stage, LaunchFields) else Launch()


def interpreter_here(stage: StageFields) -> str:
    """The interpreter on this machine that looks at a stage's data: its own, or Cockpit's for one in a container."""
    return sys.executable if launch_of(stage).container else stage.python or sys.executable
