"""A screen ends with its terminal, also where SIGHUP is ignored."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from engines.words import ExitCode
from tests.patience import PATIENCE_S
from tests.tui.terminal import ROOT

IGNORING = "import os, signal, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"


def test_a_screen_whose_terminal_is_gone_ends_although_sighup_is_ignored(tmp_path: Path) -> None:
    leader, follower = pty.openpty()
    argv = [sys.executable, "-c", IGNORING, sys.executable, "-m", "cockpit", "--runs-dir", str(tmp_path)]
    environment = {**os.environ, "TERM": "xterm-256color"}
    with subprocess.Popen(
        argv, stdin=follower, stdout=follower, stderr=follower, env=environment, cwd=ROOT, start_new_session=True
    ) as screen:
        os.close(follower)
        shown, end_s = b"", time.monotonic() + PATIENCE_S
        while b"Recipes" not in shown and time.monotonic() < end_s:
            if select.select([leader], [], [], 0.2)[0]:
                shown += os.read(leader, 65_536)
        assert b"Recipes" in shown
        ignored = int(
            next(
                line
                for line in Path(f"/proc/{screen.pid}/status").read_text().splitlines()
                if line.startswith("SigIgn")
            ).split()[1],
            16,
        )
        assert ignored & 1 << signal.SIGHUP - 1, "the signal alone would not end it"
        os.close(leader)
        assert screen.wait(PATIENCE_S) == ExitCode.INTERRUPTED


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_screen_and_restores_its_terminal(tmp_path: Path, number: signal.Signals) -> None:
    leader, follower = pty.openpty()
    before = termios.tcgetattr(follower)
    argv = [sys.executable, "-m", "cockpit", "--runs-dir", str(tmp_path)]
    environment = {**os.environ, "TERM": "xterm-256color"}
    with subprocess.Popen(
        argv, stdin=follower, stdout=follower, stderr=follower, env=environment, cwd=ROOT, start_new_session=True
    ) as screen:
        shown, end_s = b"", time.monotonic() + PATIENCE_S
        while b"Recipes" not in shown and time.monotonic() < end_s:
            if select.select([leader], [], [], 0.2)[0]:
                shown += os.read(leader, 65_536)
        assert b"Recipes" in shown
        assert termios.tcgetattr(follower) != before, "the screen reads key by key"
        screen.send_signal(number)
        while screen.poll() is None and time.monotonic() < end_s:
            if select.select([leader], [], [], 0.2)[0]:
                shown += os.read(leader, 65_536)
        assert screen.wait(PATIENCE_S) == ExitCode.INTERRUPTED
        while select.select([leader], [], [], 0)[0]:
            shown += os.read(leader, 65_536)
        assert shown.rfind(b"\x1b[?1049l") > shown.rfind(b"\x1b[?1049h"), "the screen of before is back"
        assert shown.rfind(b"\x1b[?1003l") > shown.rfind(b"\x1b[?1003h"), "moves of the mouse are not reported"
        assert termios.tcgetattr(follower) == before
    os.close(leader)
    os.close(follower)
