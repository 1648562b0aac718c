"""`cockpit parity` on the command line: the choice of files and fixture, and the output."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from cockpit.cli import main
from tests.exporters.exporting import export
from tests.exporters.small_models import build_model, build_tokenizer

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished export's folder, and its model beside it."""
    root = tmp_path_factory.mktemp("parity")
    for name in ("tokenizer", "model", "export"):
        (root / name).mkdir()
    model = build_model(root / "model", build_tokenizer(root / "tokenizer"), hidden_size=64, intermediate_size=96)
    ctx, _ = export(root / "export", model, "F16", "Q8_0")
    shutil.copytree(ctx.out, root / "files")
    return root


def parity(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, dict[str, Any]]:
    code = main(["parity", *map(str, words), "--threads", "1", "--json"])
    out = capsys.readouterr().out
    return code, json.loads(out) if out else {}


def test_a_folder_its_fixture_and_its_types_are_compared(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, report = parity(capsys, folder / "files")
    assert (code, [file["file"] for file in report["files"]]) == (0, ["run-F16.gguf", "run-Q8_0.gguf"])
    code, report = parity(capsys, folder / "files" / "fixture.json", "--types", "Q8_0")
    assert (code, [file["file"] for file in report["files"]]) == (0, ["run-Q8_0.gguf"])


def test_a_file_is_compared_with_its_source_model(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "copied.gguf"
    shutil.copyfile(folder / "files" / "run-F16.gguf", file)
    kept = tmp_path / "kept.json"
    code, report = parity(capsys, file, "--model", folder / "model", "--positions", "200", "--save-fixture", kept)
    assert (code, report["files"][0]["bytes"]["findings"]) == (0, [])
    assert parity(capsys, kept)[0] == 0, "the fixture that was kept names the file beside it"


def test_a_runtime_that_differs_is_exit_code_1_and_a_table(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "parity",
        str(folder / "files"),
        "--types",
        "F16",
        "--threads",
        "1",
        "--runner",
        "echo 1 2 3 {gguf} {prompt_ids}",
    ]
    assert main(words) == 1
    out = capsys.readouterr().out
    assert "llama.cpp (built in)" in out
    assert "differs" in out
    assert "✗ run-F16.gguf" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{root}/nothing.gguf", "--model", "{root}/model"], "no file"),
        (["{root}/model"], "has no fixture.json"),
        (["{root}/files", "--types", "Q2_K"], "no file of Q2_K"),
        (["{root}/files", "{root}/model"], "several sources must all be .gguf files"),
        (["{root}/files", "--runner", "echo {{gguf}}"], "has no {prompt_ids}"),
        (["{root}/files/run-F16.gguf", "--model", "{root}/nowhere"], "--model — no folder"),
        (["nothing-of-the-kind"], "no run"),
    ],
)
def test_errors_are_two_lines(
    words: list[str], message: str, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    given = [word.format(root=folder) for word in words]
    assert main(["--runs-dir", str(tmp_path), "parity", *given]) == 2
    err = capfd.readouterr().err
    assert message in err
    assert "Traceback" not in err
