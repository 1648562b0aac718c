"""`cockpit trust`, and what is refused before it: a stranger's folder starts nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cockpit.launching.launch import resolve, resume
from cockpit.launching.start import start_supervisor
from cockpit.launching.trusting import what_would_start
from cockpit.provenance.trust import seal, why_untrusted
from engines.run_dir.paths import RunDir
from engines.words import StartReason
from recipes.load import load_recipe_text
from recipes.problems import OperatorError
from tests.cockpit.command_line import CommandLine, Terminal
from tests.runs.harness import fake_recipe, launch_text, nothing_left, wait_for_end

CANARY = "#!/bin/sh\ntouch {touched}\nexit 1\n"


@pytest.fixture
def line(tmp_path: Path) -> CommandLine:
    return CommandLine(tmp_path)


@pytest.fixture
def foreign(tmp_path: Path) -> RunDir:
    """A finished run without a token, whose recipe names an interpreter that leaves a trace."""
    run = launch_text(fake_recipe({"max_steps": 3, "step_s": 0.0}), tmp_path)
    assert wait_for_end(run) == "succeeded"
    (tmp_path / "evil").write_text(CANARY.format(touched=tmp_path / "touched"))
    (tmp_path / "evil").chmod(0o755)
    recipe = run.recipe_json.read_text()
    assert '"python": null' in recipe
    run.recipe_json.write_text(recipe.replace('"python": null', f'"python": "{tmp_path / "evil"}"'))
    run.launch_token.unlink()
    return run


def test_resume_of_a_stranger_s_run_lists_what_it_would_start_and_starts_nothing(
    tmp_path: Path, line: CommandLine, foreign: RunDir
) -> None:
    before = foreign.journal.read_bytes()
    done = line.run("resume", foreign.id, "--stage", "part-1")
    assert done.returncode == 2
    assert f"{foreign.id} is read-only" in done.stderr
    assert f"stage part-1 (fake): {tmp_path / 'evil'} -m engines.run" in done.stderr
    assert f"cockpit trust {foreign.root}" in done.stderr
    for attempt in (
        lambda: resume(foreign, stage="part-1"),
        lambda: start_supervisor(foreign, StartReason.ADOPT),
    ):
        with pytest.raises(OperatorError, match="is read-only"):
            attempt()
    assert not (tmp_path / "touched").exists()
    assert foreign.journal.read_bytes() == before


def test_a_run_from_a_stranger_s_run_lists_what_it_would_start_and_starts_nothing(
    tmp_path: Path, line: CommandLine, foreign: RunDir
) -> None:
    done = line.run("run", "--from", f"{foreign.id}:part-1", "--detach")
    assert done.returncode == 2
    assert f"{foreign.id} is read-only" in done.stderr
    assert f"a run from it would start:\n  stage part-1 (fake): {tmp_path / 'evil'} -m engines.run" in done.stderr
    assert f"cockpit trust {foreign.root}; then start it" in done.stderr
    assert not (tmp_path / "touched").exists()
    assert [path.name for path in foreign.root.parent.iterdir()] == [foreign.id]


def test_trust_lists_the_interpreter_asks_for_a_terminal_and_is_given_with_yes(
    tmp_path: Path, line: CommandLine, foreign: RunDir
) -> None:
    refused = line.run("trust", foreign.id)
    assert refused.returncode == 2
    assert "no terminal to ask on" in refused.stderr
    assert f"{tmp_path / 'evil'} -m engines.run" in refused.stdout
    assert why_untrusted(foreign)
    given = line.run("trust", foreign.id, "--yes")
    assert given.returncode == 0
    assert given.stdout.endswith(f"{foreign.id} is trusted\n")
    assert why_untrusted(foreign) == ""
    assert "already trusted" in line.run("trust", foreign.id).stdout
    assert not (tmp_path / "touched").exists(), "trusting starts nothing"


@pytest.mark.parametrize(("answer", "code"), [("n\n", 130), ("\n", 130), ("yes\n", 0)])
def test_on_a_terminal_the_answer_decides(line: CommandLine, foreign: RunDir, answer: str, code: int) -> None:
    terminal = Terminal(line, "trust", foreign.id)
    terminal.expect("[y/N]")
    terminal.type(answer)
    assert terminal.wait() == code
    terminal.close()
    assert (why_untrusted(foreign) == "") is (code == 0)


STAGES = """
schema = 1
name = "x"
[[stage]]
name = "p"
kind = "prepare"
output = "messages"
command = ["fetch", "all"]
[[stage]]
name = "e"
kind = "evaluate"
model = "./m"
data = "p"
test_data = "p"
allow_code_execution = true
"""


def test_what_stages_run_besides_their_engine_is_listed_before_a_run_is_trusted(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    loaded = load_recipe_text(STAGES, tmp_path / "recipe.toml")
    (tmp_path / "recipe.json").write_text(json.dumps(resolve(loaded).to_json()))
    listed = "\n".join(what_would_start(RunDir(tmp_path)))
    assert "command: fetch all" in listed
    assert "allow_code_execution: runs the code of answers, in the sandbox" in listed


def test_a_folder_that_others_may_write_cannot_be_trusted(line: CommandLine, foreign: RunDir) -> None:
    foreign.root.chmod(0o777)
    done = line.run("trust", foreign.id, "--yes")
    assert done.returncode == 2
    assert f"chmod -R go-w {foreign.root}" in done.stderr
    foreign.root.chmod(0o700)
    assert why_untrusted(foreign)


def test_a_trusted_run_is_resumed(tmp_path: Path) -> None:
    with nothing_left(tmp_path / "runs"):
        run = launch_text(fake_recipe({"max_steps": 3, "step_s": 0.0}), tmp_path)
        assert wait_for_end(run) == "succeeded"
        run.launch_token.unlink()
        seal(run)
        resume(run, stage="part-1")
        assert wait_for_end(run) == "succeeded"


@pytest.mark.parametrize("program", ["/bin/false", "/nowhere/python"])
def test_a_launch_whose_supervisor_does_not_start_leaves_no_run_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    monkeypatch.setattr("sys.executable", program)
    with pytest.raises(OperatorError, match=r"did not start|could not be started: No such file"):
        launch_text(fake_recipe({"max_steps": 3, "step_s": 0.0}), tmp_path)
    assert list((tmp_path / "runs").iterdir()) == []
