"""`cockpit verify`: every byte of an artifact and of its ancestors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from cockpit.cli import main
from tests.engines.artifacts.test_custody import stage


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two runs: the second exports the first's model."""
    root = tmp_path / "runs"
    first, second = root / "20260101-0000-a", root / "20260101-0001-b"
    data = stage(first / "stages" / "data" / "out", "data", run=first.name)
    model = stage(first / "stages" / "model" / "out", "model", data, run=first.name)
    stage(second / "stages" / "gguf" / "out", "gguf", model, run=second.name)
    for run in (first, second):
        (run / "run.json").write_text(json.dumps({"format": 1, "id": run.name, "recipe": "x", "parent": None}))
    return root


def verify(runs: Path, what: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, str]]:
    code = main(["--runs-dir", str(runs), "verify", what, "--json"])
    report = json.loads(capsys.readouterr().out)
    assert report["whole"] == (code == 0)
    return code, {link["name"].partition(":")[2]: link["verdict"] for link in report["links"]}


def test_an_intact_chain_verifies_across_runs(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, links = verify(runs, "20260101-0001-b:gguf", capsys)
    assert (code, links) == (0, {"gguf": "whole", "model": "whole", "data": "whole"})


def test_one_changed_byte_of_an_ancestor_is_found_and_named(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = runs / "20260101-0000-a" / "stages" / "data" / "out" / "data.bin"
    file.write_text("dat4")
    code, links = verify(runs, "last", capsys)
    assert (code, links["data"], links["gguf"]) == (1, "damaged", "whole")
    assert main(["--runs-dir", str(runs), "verify", "last"]) == 1
    out = capsys.readouterr().out
    assert "data.bin" in out
    assert "1 damaged" in out


def test_a_missing_ancestor_is_reported_and_is_not_damage(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(runs / "20260101-0000-a" / "stages" / "data")
    assert verify(runs, "last", capsys) == (0, {"gguf": "whole", "model": "whole", "data": "gone"})


def test_a_replaced_ancestor_is_found_in_its_new_place(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = runs / "20260101-0000-a" / "stages" / "model" / "out"
    out.rename(out.with_name("out.1"))
    stage(out, "model made anew", run="20260101-0000-a")
    assert verify(runs, "20260101-0001-b:gguf", capsys)[1]["model"] == "whole"


def test_runs_that_were_moved_still_verify(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs.rename(tmp_path / "elsewhere")
    folder = tmp_path / "elsewhere" / "20260101-0001-b" / "stages" / "gguf" / "out"
    (tmp_path / "empty").mkdir()
    code, links = verify(tmp_path / "empty", str(folder), capsys)
    assert (code, links) == (0, {"gguf": "whole", "model": "whole", "data": "whole"})


def test_a_copied_file_is_traced_to_the_stage_that_made_it(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy.bin"
    copy.write_bytes((runs / "20260101-0001-b" / "stages" / "gguf" / "out" / "data.bin").read_bytes())
    assert verify(runs, str(copy), capsys)[1]["gguf"] == "whole"
    copy.write_text("other")
    assert main(["--runs-dir", str(runs), "verify", str(copy)]) == 2
    assert "no finished stage" in capsys.readouterr().err


def test_a_file_in_a_finished_folder_that_its_stage_did_not_write_is_damaged(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = runs / "20260101-0001-b" / "stages" / "gguf" / "out"
    content = (out / "data.bin").read_bytes()
    for place in (out / "copy.bin", out / "deeper" / "data.bin"):
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(content)
        assert verify(runs, str(place), capsys)[0] == 0, "a copy of the same bytes"
        place.write_bytes(bytes(len(content)))
        assert main(["--runs-dir", str(runs), "verify", str(place)]) == 1
        said = capsys.readouterr().out
        assert "it is not a file that 20260101-0001-b:gguf wrote; data.bin has the same size" in said
        place.unlink()
    assert verify(runs, str(out / "manifest.json"), capsys)[0] == verify(runs, str(out / "data.bin"), capsys)[0] == 0


def test_a_damaged_copy_elsewhere_is_named_with_the_file_it_resembles(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    original = runs / "20260101-0001-b" / "stages" / "gguf" / "out" / "data.bin"
    same_size = tmp_path / "x.bin"
    same_size.write_bytes(bytes(original.stat().st_size))
    cut = tmp_path / "data.bin"
    cut.write_bytes(original.read_bytes()[:1])
    for copy in (same_size, cut):
        assert main(["--runs-dir", str(runs), "verify", str(copy)]) == 2
        said = capsys.readouterr().err
        assert "data.bin has the same name or size and other content" in said
        assert "a damaged copy" in said


def test_a_file_that_cannot_be_read_is_an_operators_mistake(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(_path: Path) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("cockpit.commands.verify.file_sha256", refuse)  # root reads every file
    file = runs / "20260101-0001-b" / "stages" / "gguf" / "out" / "data.bin"
    assert main(["--runs-dir", str(runs), "verify", str(file)]) == 2
    assert "cannot be read: Permission denied" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["20260101-0001-b:nothing", "nowhere", "/nowhere/at/all"])
def test_a_missing_artifact_is_a_usage_error(what: str, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--runs-dir", str(runs), "verify", what]) == 2
    assert "Traceback" not in capsys.readouterr().err
