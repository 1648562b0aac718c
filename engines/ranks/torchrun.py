"""`python -m engines.ranks.torchrun STAGE_JSON`: torchrun, which starts the processes of one attempt on this host.

It is torchrun itself, called with the arguments of the stage's table `launch`, beside a thread that records how each
process ended: torchrun's own report has the first failure only, after all have ended. The thread also ends the others:
within seconds of a failure, because a process that waits for a dead one in nccl does not notice.
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import NoReturn

from engines.ranks.own import TORCHRUN_PID_ENV
from engines.ranks.watched import WatchedRanks
from engines.run_dir import RunDir
from engines.stage_file import StageFile, read_stage_file
from engines.words import ExitCode
from recipes.problems import OperatorError
from recipes.stages.launch.fields import Launch
from recipes.stages.registry import STAGE_KINDS

JOIN_TIMEOUT_S = 600
"""How long the first hosts wait for the others."""


def torchrun_arguments(given: StageFile, stage_json: Path, launch: Launch) -> list[str]:
    """The arguments of torchrun for a stage; no restarts, because a new attempt is the supervisor's."""
    found = [f"--nproc-per-node={launch.processes}", f"--nnodes={launch.nodes}", "--max-restarts=0"]
    if launch.rendezvous:
        found += ["--rdzv-backend=c10d", f"--rdzv-endpoint={launch.rendezvous}", f"--rdzv-id={meeting_of(given)}"]
        found.append(f"--rdzv-conf=join_timeout={JOIN_TIMEOUT_S}")
    else:
        found.append("--standalone")
    program = STAGE_KINDS[str(given.stage["kind"])].program
    return [*found, "--module", program, str(stage_json)]


def meeting_of(given: StageFile) -> str:
    """The name of the rendezvous: the same on every host that runs this attempt of this stage."""
    return f"cockpit-{given.stage['name']}-{given.attempt}"


def main(argv: list[str]) -> NoReturn:
    """Start the processes and wait for their end; the exit status is 0 if each of them ended with 0."""
    stage_json = Path(argv[1])
    try:
        given = read_stage_file(stage_json)
        launch = Launch.model_validate(given.stage["launch"])
        _require_own_address(launch)
    except OperatorError as error:
        sys.stderr.write(f"{error}\n{error.hint}\n")
        os._exit(ExitCode.MISTAKE)
    from torch.distributed import run as torchrun  # seconds: not before the file was read
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    ranks = RunDir(Path(given.run_root)).ranks_json(str(given.stage["name"]), given.attempt)
    os.environ[TORCHRUN_PID_ENV] = str(os.getpid())
    watched = WatchedRanks(ranks, launch.processes)
    watched.start()
    status = ExitCode.DONE
    try:
        torchrun.run(torchrun.parse_args(torchrun_arguments(given, stage_json, launch)))
    except ChildFailedError:
        status = ExitCode.FAILED  # the thread has recorded which
    watched.finish()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _require_own_address(launch: Launch) -> None:
    """Refuse a rendezvous on this host whose port another program has.

    Raises:
        OperatorError: the port is taken by a program that is not a rendezvous.
    """
    host, _, port = launch.rendezvous.rpartition(":")
    if not host or launch.nodes > 1:
        return  # one of several hosts: the first one has it already
    with socket.socket(socket.AF_INET6 if host.startswith("[") else socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host.strip("[]"), int(port)))
        except OSError as error:
            raise OperatorError(
                f"launch.rendezvous — cannot listen at {launch.rendezvous}: {error.strerror or error}",
                "another program has this port, or the address is not this host's; choose another one, or leave"
                " rendezvous out",
            ) from error


if __name__ == "__main__":
    main(sys.argv)
