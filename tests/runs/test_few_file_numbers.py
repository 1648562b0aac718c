"""A shell that allows few open files: the run works with those, or says which step failed for want of them."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.cockpit.command_line import QUICK, CommandLine
from tests.runs.harness import nothing_left


def test_a_run_needs_no_more_than_a_few_file_numbers(tmp_path: Path) -> None:
    line = CommandLine(tmp_path)
    with nothing_left(line.runs):
        recipe = line.recipe(QUICK)
        done = line.shell(f"ulimit -n 64; exec '{sys.executable}' -m cockpit run '{recipe}'")
        assert done.returncode == 0, done.stderr
        assert "run succeeded" in done.stdout
