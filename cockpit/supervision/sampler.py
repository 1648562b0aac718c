"""`python -m cockpit.supervision.sampler RUN_ROOT INTERVAL_S [--launch=N]`: reads the machine at intervals, as a
separate process.

NVML can crash or hang its process, so the supervisor does not load it. The supervisor writes to stdin which engine is
running (`<pid> <stage>` or an empty line). When stdin closes, the supervisor has ended, and the sampler exits.
"""

from __future__ import annotations

import os
import selectors
import sys
import time
from pathlib import Path

from cockpit.supervision.machine import Accelerators, DeviceReading, EngineUse, sample_machine
from engines.emitter import EventWriter
from engines.events.writers import Warned
from engines.run_dir.paths import RunDir
from engines.words import ExitCode, WriterRole


def main(argv: list[str]) -> ExitCode:
    """Sample until stdin closes."""
    run, interval_s = RunDir(Path(argv[1])), float(argv[2])
    writer = EventWriter(run.journal, run.fifo, role=WriterRole.SAMPLER, launch=_launch(argv))
    accelerators = Accelerators() if "--no-nvml" not in argv else None
    use = EngineUse()
    engine_pid: int | None = None
    stage: str | None = None
    last_problem = ""
    poll = selectors.DefaultSelector()
    poll.register(0, selectors.EVENT_READ)
    os.set_blocking(0, False)
    rest = b""
    due_s = time.monotonic()
    while True:
        if poll.select(max(0.0, due_s - time.monotonic())):
            chunk = os.read(0, 65_536)
            if not chunk:
                break
            *lines, rest = (rest + chunk).split(b"\n")
            if lines:
                engine_pid, stage = _engine(lines[-1])
            continue
        due_s = time.monotonic() + interval_s
        reading = accelerators.read() if accelerators else DeviceReading([])
        if reading.problem != last_problem:
            last_problem = reading.problem
            writer.emit(Warned(message=reading.problem or "GPU telemetry works again"))
        writer.emit(sample_machine(reading, engine_pid, stage, use))
    writer.close()
    return ExitCode.DONE


def _launch(argv: list[str]) -> int:
    """The number of the supervisor that started this process; 0 if it is not given."""
    given = [word.removeprefix("--launch=") for word in argv if word.startswith("--launch=")]
    return int(given[0]) if given else 0


def _engine(line: bytes) -> tuple[int | None, str | None]:
    pid, _, stage = line.decode(errors="replace").partition(" ")
    return (int(pid), stage) if pid.isdigit() else (None, None)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
