"""Running `cockpit` as an operator does: as a process, with a temporary folder of runs."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

from engines.run_dir.paths import RunDir
from tests.patience import PATIENCE_S
from tests.runs.harness import fake_recipe, wait_for

CODE_ROOT = Path(__file__).resolve().parents[2]
QUICK = fake_recipe({"max_steps": 6, "step_s": 0.0, "save_steps": 3})
SLOW = fake_recipe({"max_steps": 100_000, "step_s": 0.02, "save_steps": 50})


class CommandLine:
    """A command line whose runs are in `folder`/runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runs = folder / "runs"

    def environment(self) -> dict[str, str]:
        more = {"COCKPIT_RUNS_DIR": str(self.runs), "PYTHONPATH": str(CODE_ROOT), "TERM": "xterm-256color"}
        return {**os.environ, **more}

    def recipe(self, text: str, name: str = "recipe.toml") -> str:
        path = self.folder / name
        path.write_text(text)
        return str(path)

    def run(self, *args: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return subprocess.run(
            [sys.executable, "-m", "cockpit", *args],
            env=self.environment(),
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            **options,
        )

    def shell(self, script: str) -> subprocess.CompletedProcess[str]:
        """Run a line of sh to its end."""
        return subprocess.run(
            ["sh", "-c", script], env=self.environment(), cwd=self.folder, capture_output=True, text=True, check=False
        )

    def json(self, *args: str) -> Any:
        """Run a command that prints JSON."""
        done = self.run(*args)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def start(self, *args: str, **options: Any) -> subprocess.Popen[str]:
        """Start a command and leave it running."""
        streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(
            [sys.executable, "-m", "cockpit", *args],
            env=self.environment(),
            cwd=self.folder,
            text=True,
            **{**streams, **options},
        )

    def the_run(self) -> RunDir:
        """The only run there is; waits for it. One under a temporary name (with a dot) is still being made."""
        return RunDir(wait_for(lambda: next(self.runs.glob("[!.]*/run.json"), None), "a run directory").parent)


class Terminal:
    """A command on its own terminal."""

    def __init__(self, line: CommandLine, *args: str) -> None:
        self._master, slave = pty.openpty()
        self.process = line.start(
            *args, stdin=slave, stdout=slave, stderr=slave, preexec_fn=_take_terminal, close_fds=True
        )
        os.close(slave)
        self.seen = ""

    def expect(self, words: str) -> None:
        """Read until the words have been printed."""
        wait_for(lambda: words in self._read(), f"{words!r} on the terminal")

    def type(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def wait(self) -> int:
        """Wait for the command's end, reading what it prints; returns the exit code."""
        wait_for(lambda: (self._read(), self.process.poll() is not None)[1], "the command's end")
        return self.process.returncode

    def close(self) -> None:
        os.close(self._master)
        self.process.wait(PATIENCE_S)

    def _read(self) -> str:
        os.set_blocking(self._master, False)
        try:
            while data := os.read(self._master, 65536):
                self.seen += data.decode("utf-8", "replace")
        except OSError:  # nothing yet, or the other side has closed
            pass
        return self.seen


def _take_terminal() -> None:
    import fcntl
    import termios

    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
