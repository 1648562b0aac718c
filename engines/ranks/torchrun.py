"""`python -m engines.ranks.torchrun STAGE_JSON`: torchrun, which starts the processes of one attempt on this host.

It is torchrun itself, called with the arguments of the stage's table `launch`, beside a thread that records how each
process ended: torchrun's own report has the first failure only, after all have ended. The thread also ends the others:
within seconds of a failure, because a process that waits for a dead one in nccl does not notice.
"""

from __future__ import annotations

import os
import shutil
import sys
import traceback
from pathlib import Path

from engines.ranks.addresses import interface_of, is_here, own_address, why_not_free
from engines.ranks.own import TORCHRUN_PID_ENV
from engines.ranks.watched import WatchedRanks
from engines.run_dir.paths import RunDir
from engines.stage_file import StageFile, read_stage_file
from engines.words import ExitCode
from recipes.problems import OperatorError
from recipes.stages.launch.fields import Launch
from recipes.stages.registry import STAGE_KINDS

_TAKEN = "another program has this port; choose another one, or leave rendezvous out"
_LOOPBACK = "127.0.0.1"
JOIN_TIMEOUT_S = 600
"""How long the first hosts wait for the others."""


def torchrun_arguments(given: StageFile, stage_json: Path, launch: Launch) -> list[str]:
    """The arguments of torchrun for a stage; no restarts, because a new attempt is the supervisor's.

    Raises:
        OperatorError: the rendezvous has no address, or none that this host reaches.
    """
    found = [f"--nproc-per-node={launch.processes}", f"--nnodes={launch.nodes}", "--max-restarts=0"]
    found.append(f"--log-dir={_logs(given)}")  # else a folder in /tmp, which stays there after a kill
    if launch.rendezvous:
        # Who does not listen comes: a second launch on this host is one of the others.
        here = is_here(launch.rendezvous) and not why_not_free(launch.rendezvous)
        found += ["--rdzv-backend=c10d", f"--rdzv-endpoint={launch.rendezvous}", f"--rdzv-id={meeting_of(given)}"]
        found.append(f"--rdzv-conf=is_host={int(here)},join_timeout={JOIN_TIMEOUT_S}")
        found.append(f"--local-addr={own_address(launch.rendezvous)}")
    else:
        # By default the processes look for torchrun by this host's name, which need not resolve.
        found += ["--standalone", f"--local-addr={_LOOPBACK}"]
    program = STAGE_KINDS[str(given.stage["kind"])].program
    return [*found, "--module", program, str(stage_json)]


def _logs(given: StageFile) -> Path:
    return RunDir(Path(given.run_root)).torchrun_logs(str(given.stage["name"]), given.attempt)


def meeting_of(given: StageFile) -> str:
    """The name of the rendezvous: the same on every host that runs this attempt of this stage."""
    return f"cockpit-{given.stage['name']}-{given.attempt}"


def main(argv: list[str]) -> ExitCode:
    """Start the processes and wait for their end; the exit status is 0 if each of them ended with 0."""
    stage_json = Path(argv[1])
    try:
        given = read_stage_file(stage_json)
        launch = Launch.model_validate(given.stage["launch"])
    except OperatorError as error:
        sys.stderr.write(f"{error}\n{error.hint}\n")
        return ExitCode.MISTAKE
    ranks = RunDir(Path(given.run_root)).ranks_json(str(given.stage["name"]), given.attempt)
    watched = WatchedRanks(ranks, launch.processes)
    status, reason = _launched(given, launch, stage_json, watched)
    if reason:
        sys.stderr.write(f"{reason}\n")
    watched.finish(reason, all_done=status is ExitCode.DONE)
    shutil.rmtree(_logs(given), ignore_errors=True)  # the supervisor reads ranks.json, the operator the console files
    return status


def _launched(given: StageFile, launch: Launch, stage_json: Path, watched: WatchedRanks) -> tuple[ExitCode, str]:
    """Start the processes and wait for them: the exit status, and why there were none."""
    try:
        _prepare(launch)
        arguments = torchrun_arguments(given, stage_json, launch)
    except OperatorError as error:
        return ExitCode.MISTAKE, f"{error}; {error.hint}"
    from torch.distributed import run as torchrun  # seconds: not before the file was read
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous.api import RendezvousConnectionError, RendezvousError

    os.environ[TORCHRUN_PID_ENV] = str(os.getpid())
    watched.start()
    try:
        try:
            torchrun.run(torchrun.parse_args(arguments))
        except RendezvousConnectionError:  # another launch on this host began to listen since
            torchrun.run(torchrun.parse_args(torchrun_arguments(given, stage_json, launch)))
    except ChildFailedError as error:  # the thread has recorded which
        watched.learn({failure.pid: failure.exitcode for failure in error.failures.values()})
        return ExitCode.FAILED, ""
    except RendezvousError as error:
        traceback.print_exc()
        why = f"{type(error).__name__}: {error}"
        if launch.nodes == 1:
            return ExitCode.FAILED, (f"launch.rendezvous — cannot meet at {launch.rendezvous} ({why}); {_TAKEN}")
        return ExitCode.FAILED, (
            f"launch.rendezvous — no {launch.nodes} hosts met at {launch.rendezvous} as {meeting_of(given)} ({why});"
            " start the same stage and attempt on every host, and see that nothing else listens there"
        )
    return ExitCode.DONE, ""


def _prepare(launch: Launch) -> None:
    """Check the rendezvous of this host, and let the processes use the interface that leads to it.

    Raises:
        OperatorError: the port is taken.
    """
    if not launch.rendezvous:
        return
    taken = is_here(launch.rendezvous) and launch.nodes == 1 and why_not_free(launch.rendezvous)
    if taken:
        raise OperatorError(
            f"launch.rendezvous — cannot listen at {launch.rendezvous}: {taken}",
            _TAKEN,
        )
    name = interface_of(own_address(launch.rendezvous))
    for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME") if name else ():
        # Without it they use the address of this host's name, which is often one that no other host reaches.
        os.environ.setdefault(variable, name)


if __name__ == "__main__":
    ended = main(sys.argv)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(ended)  # threads of the library may be left
