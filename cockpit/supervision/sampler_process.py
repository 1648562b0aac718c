"""The supervisor's side of the sampler: start it, name the engine to measure, and restart it when it dies."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import suppress

from cockpit import CODE_ROOT
from cockpit.provenance.mark import SAMPLER_MODULE
from engines.emitter import EventWriter
from engines.events.writers import Warned
from engines.files import open_append
from engines.run_dir.paths import RunDir
from recipes import quantities

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 60.0
CRASHES_WITH_NVML = 3


class SamplerProcess:
    """The sampler as a child process; if it crashes or hangs, the run only gets a warning."""

    def __init__(self, run: RunDir, interval_s: float, writer: EventWriter) -> None:
        self._run = run
        self._interval_s = interval_s
        self._writer = writer
        self._child: subprocess.Popen[bytes] | None = None
        self._engine = b"\n"
        self._crashes = 0
        self._due_s = 0.0
        self._stopped = False

    @property
    def pid(self) -> int | None:
        return None if self._child is None else self._child.pid

    def start(self) -> None:
        """Start the sampler, unless it is running."""
        if self._child is not None or self._stopped:
            return
        program = [sys.executable, "-m", SAMPLER_MODULE]
        argv = [*program, str(self._run.root), str(self._interval_s), f"--launch={self._writer.opened.launch}"]
        if self._crashes >= CRASHES_WITH_NVML:
            argv.append("--no-nvml")
        with suppress(OSError), os.fdopen(open_append(self._run.supervisor_log), "ab") as log:
            self._child = subprocess.Popen(
                argv, stdin=subprocess.PIPE, stdout=log, stderr=log, cwd=CODE_ROOT, start_new_session=True
            )
            self._send_engine()

    def watch(self, pid: int | None, stage: str = "") -> None:
        """Set the engine whose memory the sampler reads."""
        self._engine = f"{pid} {stage}\n".encode() if pid else b"\n"
        self._send_engine()

    def check(self) -> None:
        """Restart a sampler that died, after a pause that doubles each time."""
        if self._stopped:
            return
        if self._child is not None and self._child.poll() is not None:
            self._crashes += 1
            pause_s = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** (self._crashes - 1))
            self._due_s = time.monotonic() + pause_s
            without = ", without GPU telemetry from now on" if self._crashes == CRASHES_WITH_NVML else ""
            message = (
                f"the sampler exited with status {self._child.returncode}; restarting it in "
                f"{quantities.duration(pause_s)}{without}"
            )
            self._writer.emit(Warned(message=message))
            self._close_input()
            self._child = None
        if self._child is None and time.monotonic() >= self._due_s:
            self.start()

    def stop(self) -> None:
        """End the sampler: close its input, and kill it if it does not exit."""
        self._stopped = True
        if self._child is None:
            return
        self._close_input()
        try:
            self._child.wait(2.0)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._child = None

    def _send_engine(self) -> None:
        if self._child is not None and self._child.stdin is not None:
            with suppress(OSError):
                self._child.stdin.write(self._engine)
                self._child.stdin.flush()

    def _close_input(self) -> None:
        if self._child is not None and self._child.stdin is not None:
            with suppress(OSError):
                self._child.stdin.close()
