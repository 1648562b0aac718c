from __future__ import annotations

import json
import re
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cockpit.launching.requests import STOP_AFTER_CHECKPOINT
from cockpit.provenance.trust import seal
from engines.events.steps import Step
from engines.run_dir.locks import lock_is_held
from tests.cockpit.command_line import QUICK, SLOW, CommandLine, Terminal
from tests.patience import PATIENCE_S
from tests.runs.harness import (
    end_soon,
    ended,
    events,
    fake_recipe,
    kill_supervisor,
    nothing_left,
    state,
    wait_for,
    wait_for_end,
)

FAILING = fake_recipe({"max_steps": 6, "step_s": 0.0, "fail_at_step": 3})
REFUSED = fake_recipe({"max_steps": 6, "step_s": 0.0, "gate": [{"metric": "loss", "op": "<", "value": 0.001}]}).replace(
    'gate = [{"metric": "loss", "op": "<", "value": 0.001}]', 'gate = [{metric = "loss", op = "<", value = 0.001}]'
)
SIX_MISTAKES = """schema = 1
name = "Six Mistakes"
[[stage]]
name = "a"
kind = "fake"
learning_rate = 2
max_stepz = 10
[[stage]]
name = "a"
kind = "fkae"
[[stage]]
name = "c"
kind = "fake"
data = "nowhere"
save_steps = "often"
"""


@pytest.fixture
def line(tmp_path: Path) -> Iterator[CommandLine]:
    made = CommandLine(tmp_path)
    with nothing_left(made.runs):
        yield made


def begun(line: CommandLine, steps: int = 3) -> None:
    """Wait until the only run trains."""
    run = line.the_run()
    wait_for(lambda: sum(isinstance(e, Step) for e in events(run)) >= steps, "the first steps")


def test_run_follows_to_the_end_and_closes_with_the_tables(line: CommandLine) -> None:
    done = line.run("run", line.recipe(QUICK))
    assert done.returncode == 0, done.stderr
    assert "run succeeded" in done.stdout
    lines = done.stdout.rstrip().splitlines()
    at = next(number for number, words in enumerate(lines) if words.startswith("total"))
    total, blank, titles, _, pace, *_limits = lines[at:]  # a machine that is stopped within six steps has been read
    assert "succeeded" in total
    assert blank == ""
    assert titles.split()[:2] == ["training", "steps"]
    assert pace.split()[:2] == ["part-1", "6/6"]
    assert line.the_run().id in done.stderr


def test_run_json_prints_the_journals_lines_in_the_order_of_the_file(line: CommandLine) -> None:
    done = line.run("run", line.recipe(QUICK), "--json")
    assert done.returncode == 0, done.stderr
    assert done.stdout.encode() == line.the_run().journal.read_bytes()
    assert json.loads(done.stdout.splitlines()[-1])["k"] is not None


def test_quiet_prints_nothing_and_the_exit_code_is_the_result(line: CommandLine) -> None:
    done = line.run("run", line.recipe(QUICK), "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(("text", "code"), [(FAILING, 1), (REFUSED, 3)])
def test_a_failed_run_and_a_refused_one_have_their_exit_codes(line: CommandLine, text: str, code: int) -> None:
    done = line.run("run", line.recipe(text))
    assert done.returncode == code, done.stdout + done.stderr


@pytest.mark.parametrize("command", ["run", "check"])
def test_six_mistakes_are_all_located_and_nothing_is_made(line: CommandLine, command: str) -> None:
    path = line.recipe(SIX_MISTAKES)
    done = line.run(command, path)
    assert done.returncode == 2
    assert done.stdout == ""
    for number in (2, 6, 7, 9, 10, 14, 15):
        assert f"recipe.toml:{number}  " in done.stderr, done.stderr
    assert not line.runs.exists()


def test_check_as_json_has_every_problem(line: CommandLine) -> None:
    done = line.run("check", line.recipe(SIX_MISTAKES), "--json")
    answer = json.loads(done.stdout)
    assert done.returncode == 2
    assert answer["ok"] is False
    assert {problem["line"] for problem in answer["problems"]} >= {2, 6, 7, 9, 10, 14, 15}


def test_a_file_with_a_syntax_error_gives_one_located_error(line: CommandLine) -> None:
    done = line.run("check", line.recipe('schema = 1\nname = "x\n'))
    assert done.returncode == 2
    assert done.stderr.count("recipe.toml:2") == 1
    assert "Traceback" not in done.stderr


def test_check_of_a_sound_recipe_prints_its_plan(line: CommandLine) -> None:
    answer = line.json("check", line.recipe(QUICK), "--json", "--set", "part-1.max_steps=9")
    assert answer["ok"] is True
    assert answer["plan"]["stages"][0]["steps"] == 9
    assert not line.runs.exists()


def test_a_shipped_recipe_is_known_by_its_name(line: CommandLine) -> None:
    assert line.json("check", "fake", "--json")["recipe"] == "fake"


def test_errors_of_the_operator_are_two_lines_and_exit_code_2(line: CommandLine) -> None:
    for args in (
        ["show", "nosuch"],
        ["run", "nosuch.toml"],
        ["attach", "last"],
        ["resume", "x"],
        ["replay", "/nowhere/x"],
    ):
        done = line.run(*args)
        assert done.returncode == 2, args
        assert done.stdout == ""
        assert 1 <= len(done.stderr.splitlines()) <= 2, done.stderr
    assert line.run("run").returncode == 2
    assert line.run("nosuchcommand").returncode == 2
    assert line.run().returncode == 2  # the screen without a terminal


def test_runs_dir_is_accepted_before_and_after_the_command(line: CommandLine, tmp_path: Path) -> None:
    elsewhere = str(tmp_path / "elsewhere")
    done = line.run("run", line.recipe(QUICK), "--runs-dir", elsewhere, "--name", "moved")
    assert done.returncode == 0, done.stderr
    before, after = (
        line.json("--runs-dir", elsewhere, "ls", "--json"),
        line.json("ls", "--json", "--runs-dir", elsewhere),
    )
    assert before == after
    assert before[0]["id"].endswith("-moved")
    assert line.json("ls", "--json") == []


def test_ls_is_newest_first_and_show_has_stages_with_everything(line: CommandLine) -> None:
    path = line.recipe(QUICK)
    for _ in range(2):
        assert line.run("run", path, "--quiet").returncode == 0
    listed = line.json("ls", "--json")
    assert [run["state"] for run in listed] == ["succeeded", "succeeded"]
    assert listed[0]["id"] > listed[1]["id"]
    assert {"id", "recipe", "state"} <= set(listed[0])
    shown = line.json("show", "last", "--json")
    assert (shown["id"], shown["state"]) == (listed[0]["id"], "succeeded")
    for name in (listed[0]["id"], str(line.runs / listed[0]["id"])):
        assert line.json("show", name, "--json") == shown
    stage = shown["stages"][0]
    assert {"name", "kind", "state", "attempts", "checkpoints", "artifacts", "metrics"} <= set(stage)
    assert (stage["name"], stage["kind"], stage["state"]) == ("part-1", "fake", "succeeded")
    assert [c["step"] for c in stage["checkpoints"]] == [3, 6]
    assert stage["attempts"][0]["reason"] == "succeeded"
    for command in (["ls"], ["show", "last"]):
        assert line.run(*command).returncode == 0


def test_replay_prints_the_journal_again_from_a_run_or_a_file(line: CommandLine) -> None:
    live = line.run("run", line.recipe(QUICK)).stdout
    run = line.the_run()
    assert line.run("replay", "last", "--json").stdout.encode() == run.journal.read_bytes()
    assert line.run("replay", str(run.journal), "--json", "--speed", "max").stdout.encode() == run.journal.read_bytes()
    assert line.run("replay", "last", "--plain", "--speed", "1000").stdout == live
    assert line.run("replay", str(run.root)).stdout == live  # no terminal: lines
    assert line.run("replay", "last", "--speed", "0").returncode == 2


def test_a_replay_far_slower_than_the_run_waits_and_does_not_fail(line: CommandLine) -> None:
    assert line.run("run", line.recipe(QUICK), "--quiet").returncode == 0
    replay = line.start("replay", "last", "--json", "--speed", "1e-320")
    assert replay.stdout
    assert replay.stdout.readline()  # the first record; the second is due in more seconds than a float holds
    time.sleep(1.0)
    assert replay.poll() is None
    replay.terminate()
    assert "Traceback" not in replay.communicate(timeout=PATIENCE_S)[1]


def test_output_needs_neither_an_open_stdout_nor_an_encoding_with_every_character(line: CommandLine) -> None:
    assert line.run("run", line.recipe(QUICK), "--quiet").returncode == 0
    command = f'"{sys.executable}" -m cockpit show last'
    closed = line.shell(f"{command} >&-")
    assert (closed.returncode, closed.stdout, closed.stderr) == (0, "", "")
    for setting in ("PYTHONIOENCODING=ascii", "LC_ALL=C PYTHONCOERCECLOCALE=0 PYTHONUTF8=0"):
        ascii_only = line.shell(f"{setting} {command}")
        assert (ascii_only.returncode, ascii_only.stderr) == (0, "")
        assert "? part-1  fake" in ascii_only.stdout


def test_detach_prints_the_id_and_the_run_continues(line: CommandLine) -> None:
    done = line.run("run", line.recipe(QUICK), "--detach")
    assert (done.returncode, done.stdout.strip()) == (0, line.the_run().id)
    assert wait_for_end(line.the_run()) == "succeeded"
    assert line.run("attach", "last").returncode == 0


def test_stop_ends_a_run_at_a_checkpoint_and_resume_finishes_it(line: CommandLine) -> None:
    follower = line.start("run", line.recipe(SLOW))
    begun(line)
    stopped = line.run("stop", "last")
    assert (stopped.returncode, stopped.stdout.split()) == (0, [line.the_run().id, "stopped"])
    assert STOP_AFTER_CHECKPOINT in stopped.stderr
    follower.communicate(timeout=PATIENCE_S)
    assert follower.returncode == 130
    before = line.json("show", "last", "--json")["stages"][0]
    assert before["checkpoints"][-1]["step"] == before["step"]
    last = before["step"] + 40
    resumed = line.run("resume", "last", "--set", f"part-1.max_steps={last}")
    assert resumed.returncode == 0, resumed.stderr
    after = line.json("show", "last", "--json")["stages"][0]
    assert after["attempts"][1]["resumed_from"]["step"] == before["step"]
    assert after["step"] == last
    assert line.run("resume", "last").returncode == 2
    refused = line.run("stop", "last")
    assert refused.returncode == 2
    assert "the run has already ended (succeeded)" in refused.stderr


def test_term_requests_a_stop_after_a_checkpoint_and_waits(line: CommandLine) -> None:
    follower = line.start("run", line.recipe(SLOW))
    begun(line)
    follower.send_signal(signal.SIGTERM)
    _, output = follower.communicate(timeout=PATIENCE_S)
    assert follower.returncode == 130
    assert STOP_AFTER_CHECKPOINT in output
    assert ended(line.the_run()) == "stopped"
    assert state(line.the_run()).stages[0].checkpoints


def test_an_interrupt_without_a_terminal_detaches(line: CommandLine) -> None:
    follower = line.start("run", line.recipe(SLOW))
    begun(line)
    follower.send_signal(signal.SIGINT)
    _, output = follower.communicate(timeout=PATIENCE_S)
    assert follower.returncode == 130
    assert "detached" in output
    assert "Traceback" not in output
    assert ended(line.the_run()) is None


def test_on_a_terminal_an_interrupt_asks_and_s_stops_after_a_checkpoint(line: CommandLine) -> None:
    terminal = Terminal(line, "run", line.recipe(SLOW))
    begun(line)
    terminal.expect("loss")
    terminal.type("\x03")
    terminal.expect("[s]top")
    terminal.type("s")
    assert terminal.wait() == 130
    assert ended(line.the_run()) == "stopped"
    terminal.close()


def test_on_a_terminal_a_second_interrupt_detaches_at_once(line: CommandLine) -> None:
    terminal = Terminal(line, "run", line.recipe(SLOW))
    begun(line)
    terminal.type("\x03")
    terminal.expect("[d]etach")
    terminal.type("\x03")
    assert terminal.wait() == 130
    assert "detached; the run continues" in terminal.seen
    assert ended(line.the_run()) is None
    terminal.close()


def test_a_closed_output_ends_the_follower_quietly_and_the_run_continues(line: CommandLine) -> None:
    follower = line.start("run", line.recipe(SLOW), "--json")
    assert follower.stdout is not None
    assert follower.stderr is not None
    assert follower.stdout.readline().startswith('{"v":1,')
    follower.stdout.close()
    follower.wait(PATIENCE_S)
    assert "Traceback" not in follower.stderr.read()
    follower.stderr.close()
    assert ended(line.the_run()) is None


def test_a_follower_adopts_a_run_whose_supervisor_died(line: CommandLine) -> None:
    text = fake_recipe(
        {"max_steps": 100_000, "step_s": 0.05, "save_steps": 20}, {"max_steps": 3, "step_s": 0.0, "data": "part-1"}
    )
    follower = line.start("run", line.recipe(text), "--json")
    begun(line)
    assert kill_supervisor(line.the_run()) is not None
    wait_for(lambda: lock_is_held(line.the_run().supervisor_lock), "the follower to have started another supervisor")
    end_soon(line.the_run())
    output, _ = follower.communicate(timeout=PATIENCE_S)
    assert follower.returncode == 0
    assert output.encode() == line.the_run().journal.read_bytes()
    assert [json.loads(record)["k"] for record in output.splitlines()].count("run_ended") == 1


@pytest.mark.thorough
def test_a_follower_gives_up_when_no_supervisor_can_be_started(line: CommandLine) -> None:
    follower = line.start("run", line.recipe(SLOW), "--quiet")
    begun(line)
    line.the_run().recipe_json.write_text("{}")
    seal(line.the_run())  # trusted, so that only the recipe is in the way of a supervisor
    assert kill_supervisor(line.the_run()) is not None
    _, output = follower.communicate(timeout=PATIENCE_S)
    assert follower.returncode == 2
    assert "none could be started" in output


def test_output_that_cannot_be_written_is_a_message(line: CommandLine) -> None:
    assert line.run("run", line.recipe(QUICK), "--quiet").returncode == 0
    with Path("/dev/full").open("w") as full:
        process = line.start("ls", stdout=full)
        _, output = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1
    assert "could not write the output" in output
    assert "Traceback" not in output


def test_run_with_stage_runs_it_and_what_it_needs(line: CommandLine) -> None:
    text = fake_recipe(
        {"max_steps": 2, "step_s": 0.0},
        {"max_steps": 2, "step_s": 0.0},
        {"max_steps": 2, "step_s": 0.0, "data": "part-1"},
    )
    assert line.run("run", line.recipe(text), "--stage", "part-3", "--quiet").returncode == 0
    ran = {stage["name"]: stage["state"] for stage in line.json("show", "last", "--json")["stages"]}
    assert (ran["part-1"], ran["part-3"]) == ("succeeded", "succeeded")
    assert ran["part-2"] != "succeeded"


def test_merge_and_export_name_missing_inputs(line: CommandLine) -> None:
    assert line.run("run", line.recipe(QUICK), "--quiet").returncode == 0
    for args in (
        ["merge", "--adapter", "last:part-1"],
        ["export", "last:part-1"],
        ["export", "./nowhere"],
        ["merge", "--adapter", "x"],
    ):
        done = line.run(*args)
        assert done.returncode == 2, args
        assert len(done.stderr.splitlines()) <= 2
    assert len(line.json("ls", "--json")) == 1


def test_every_command_has_a_help_page(line: CommandLine) -> None:
    listed = line.run("--help").stdout
    for command in ("run", "ls", "show", "attach", "stop", "resume", "replay", "merge", "export", "quantize", "check"):
        assert command in listed
        assert "--runs-dir" in line.run(command, "--help").stdout


def test_check_lists_the_files_that_will_be_written_and_warns_of_odd_widths(line: CommandLine) -> None:
    output = line.run("check", "demo", "--set", "base.hidden_size=96", "--set", "base.num_attention_heads=4")
    assert output.returncode == 0
    assert re.search(r"gguf +Q4_K_M +about .* \d+ of \d+ tensors", output.stdout)
    assert "warning: gguf.file_types — Q4_K_M: " in output.stderr
    assert "hidden_size (96)" in output.stderr
    assert "warning" not in line.run("check", "demo").stderr
