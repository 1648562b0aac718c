"""The command that starts an engine behind a launcher."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from cockpit import CODE_ROOT
from cockpit.supervision.launcher import interpreter_of, launched
from engines.run_dir.paths import RunDir
from engines.stage_file import StageInput
from recipes.stages.fake import FakeStage

WORDS = ["python3", "-m", "engines.run", "/runs/r/stages/a/1/stage.json"]


def stage_of(*launcher: str, **fields: object) -> FakeStage:
    return FakeStage.model_validate({"name": "a", "kind": "fake", "launch": {"launcher": list(launcher)}, **fields})


def command(tmp_path: Path, *launcher: str, inputs: tuple[Path, ...] = ()) -> list[str]:
    run = RunDir(tmp_path / "runs" / "r")
    run.root.mkdir(parents=True)
    given = [StageInput(origin="path", name=str(path), path=str(path)) for path in inputs]
    environment = {"COCKPIT_RUN_ROOT": "r", "OMP_NUM_THREADS": "2", "PATH": "/bin", "HOME": "/root"}
    return launched(WORDS, stage_of(*launcher), run, given, environment)


def values(words: list[str], option: str) -> list[str]:
    return [words[at + 1] for at, word in enumerate(words) if word == option]


def test_a_program_that_is_no_container_comes_before_the_engine_and_gets_nothing(tmp_path: Path) -> None:
    assert command(tmp_path, "numactl", "--cpunodebind=0") == ["numactl", "--cpunodebind=0", *WORDS]
    assert interpreter_of(stage_of("numactl")) == sys.executable


@pytest.mark.parametrize("program", ["docker", "/usr/bin/podman"])
def test_a_container_has_the_run_to_write_its_inputs_to_read_the_user_and_the_environment(
    tmp_path: Path, program: str
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "rows.jsonl").touch()
    found = command(tmp_path, program, "run", "--gpus", "all", "image:1", inputs=(data, data / "rows.jsonl"))
    run = tmp_path / "runs" / "r"
    assert found[:2] == [program, "run"]
    assert found[-7:] == ["--gpus", "all", "image:1", *WORDS]
    assert values(found, "--user") == [f"{os.getuid()}:{os.getgid()}"]
    mounts = values(found, "--volume")
    assert mounts[-1] == f"{run}:{run}"
    assert set(mounts[:-1]) == {f"{data}:{data}:ro", f"{CODE_ROOT}:{CODE_ROOT}:ro"}  # a file within a folder: once
    assert values(found, "--env") == ["COCKPIT_RUN_ROOT", "OMP_NUM_THREADS"]  # PATH and HOME are those of the image
    assert interpreter_of(stage_of(program, "run", "image")) == "python3"


def test_apptainer_has_the_environment_by_itself_and_only_its_mounts_are_added(tmp_path: Path) -> None:
    found = command(tmp_path, "apptainer", "exec", "--nv", "train.sif")
    run = tmp_path / "runs" / "r"
    assert values(found, "--bind") == [f"{CODE_ROOT}:{CODE_ROOT}:ro", f"{run}:{run}"]
    assert "--env" not in found
    assert found[-6:] == ["--nv", "train.sif", *WORDS]


def test_the_interpreter_in_a_container_may_be_named() -> None:
    stage = stage_of("docker", "run", "image", python="/opt/conda/bin/python")
    assert interpreter_of(stage) == "/opt/conda/bin/python"


def test_links_are_mounted_under_their_own_names_with_what_they_lead_to_and_never_the_root(tmp_path: Path) -> None:
    blobs, snapshot, link = tmp_path / "blobs", tmp_path / "snapshots" / "main", tmp_path / "data"
    for folder in (blobs, snapshot, tmp_path / "rows"):
        folder.mkdir(parents=True)
    (blobs / "abc").touch()
    (snapshot / "model.safetensors").symlink_to("../../blobs/abc")
    link.symlink_to(tmp_path / "rows")
    mounts = values(command(tmp_path, "docker", "run", "image", inputs=(link, snapshot, Path("/"))), "--volume")
    assert set(mounts[:-1]) == {f"{path}:{path}:ro" for path in (blobs, snapshot, link, CODE_ROOT)}
