"""The verdict is found again beside a file or by its SHA-256; another file's, an edited and an unsigned one are not
accepted."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cockpit.cli import main
from cockpit.shipping.report import CARD, SHIP_JSON, write_report
from cockpit.shipping.verdict import beside, read_key, sealed
from engines.run_dir.paths import RunDir
from engines.words import ExitCode
from recipes.problems import OperatorError
from recipes.ship.limits import ShipLimits
from tests.cockpit.shipping.planted import Whole
from tests.cockpit.shipping.test_regressions import judged

pytestmark = pytest.mark.torch


def cockpit(*words: str) -> int:
    try:
        return int(main(list(words)))
    except SystemExit as error:
        return int(str(error.code))


@pytest.fixture
def shipped(whole: Whole) -> Whole:
    write_report(judged(whole), None, None)
    return whole


def verify(whole: Whole, file: Path, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any]]:
    capsys.readouterr()
    code = cockpit("verify", str(file), "--json", "--runs-dir", str(whole.runs), *words)
    return code, json.loads(capsys.readouterr().out)


def test_the_report_has_the_verdict_the_card_and_the_curves(shipped: Whole) -> None:
    folder = shipped.run.shipped(shipped.file().stem)
    report = json.loads((folder / SHIP_JSON).read_text())
    assert report == json.loads(beside(shipped.file()).read_text())
    assert report["passed"] is True
    assert report["file"]["sha256"] == judged(shipped).evidence["model"]
    by_name = {check["name"]: check for check in report["checks"]}
    assert by_name["task.difference_low"]["value"] > 0.5
    assert by_name["task.difference_low"]["limit"] == "> 0"
    assert by_name["task.difference_low"]["source"] == "results-Q8_0.json of stage judge"
    assert {"journal.jsonl", "recipe.json", "output of stage gguf"} <= {one["what"] for one in report["evidence"]}
    card = (folder / CARD).read_text()
    assert "**Verdict: passed.**" in card
    assert report["file"]["sha256"] in card
    assert "95.0% of 40 rows passed" in card
    assert "## Origin" in card
    assert "max_steps = 4" in card, "the recipe of the training"
    assert "(curves-tuned.png)" in card
    assert (folder / "curves-tuned.png").read_bytes().startswith(b"\x89PNG")


def test_a_copied_file_finds_its_verdict_beside_it_or_by_its_sha256(
    shipped: Whole, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = tmp_path / "alone.gguf"
    shutil.copyfile(shipped.file(), alone)
    code, found = verify(shipped, alone, capsys)
    assert (code, found["verdict"]["passed"]) == (ExitCode.DONE, True)
    shutil.copyfile(beside(shipped.file()), beside(alone))
    code, found = verify(shipped, alone, capsys)
    assert (code, found["verdict"]["path"]) == (ExitCode.DONE, str(beside(alone)))
    elsewhere = Whole(tmp_path / "no-runs", shipped.outside)
    code, found = verify(elsewhere, alone, capsys)
    assert (code, found["links"]) == (ExitCode.DONE, [])
    assert "no run with this verdict was found" in found["verdict"]["notes"][0]


def test_the_newest_verdict_counts_whatever_the_clock_said_and_whatever_lies_beside_a_copy(
    shipped: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy.gguf"
    shutil.copyfile(shipped.file(), copy)
    shutil.copyfile(beside(shipped.file()), beside(copy))
    monkeypatch.setattr("cockpit.shipping.judge.wall_clock_s", lambda: 1.0)
    write_report(judged(shipped, limits=ShipLimits(rows=1000), file_type="Q8_0"), None, None)
    code, found = verify(shipped, copy, capsys)
    assert (code, found["verdict"]["passed"]) == (ExitCode.REFUSED, False)
    assert "the verdict beside the file is an earlier one" in found["verdict"]["notes"][0]
    beside(copy).unlink()
    code, found = verify(shipped, copy, capsys)
    assert (code, found["verdict"]["judged_t"]) == (ExitCode.REFUSED, 1.0), "later, by a clock that was set back"


def test_a_refused_file_is_refused_by_verify_too(whole: Whole, capsys: pytest.CaptureFixture[str]) -> None:
    found = judged(whole, limits=ShipLimits(rows=1000), file_type="Q8_0")
    write_report(found, None, None)
    code, shown = verify(whole, whole.file(), capsys)
    assert (code, shown["verdict"]["passed"]) == (ExitCode.REFUSED, False)


def edited(verdict: dict[str, Any]) -> None:
    verdict["checks"][0]["measured"] = "another"


def edited_and_sealed_again(verdict: dict[str, Any]) -> None:
    verdict["limits"]["rows"] = 1
    verdict.update(sealed(verdict, None))


def emptied(verdict: dict[str, Any]) -> None:
    verdict.clear()


def with_text_as_time(verdict: dict[str, Any]) -> None:
    verdict["judged_t"] = "yesterday"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (edited, "the verdict was edited"),
        (edited_and_sealed_again, "and not this one"),
        (emptied, "not a verdict of this version"),
        (with_text_as_time, "cannot be read"),
    ],
)
def test_an_edited_verdict_is_detected(
    change: Callable[[dict[str, Any]], None], problem: str, shipped: Whole, capsys: pytest.CaptureFixture[str]
) -> None:
    file = beside(shipped.file())
    verdict = json.loads(file.read_text())
    change(verdict)
    file.write_text(json.dumps(verdict))
    code, found = verify(shipped, shipped.file(), capsys)
    assert (code, found["verdict"]["passed"]) == (ExitCode.FAILED, None)
    assert problem in found["verdict"]["problems"][0]


def test_a_verdict_that_was_copied_from_another_file_is_refused(
    shipped: Whole, capsys: pytest.CaptureFixture[str]
) -> None:
    other = shipped.file("F16")
    shutil.copyfile(beside(shipped.file()), beside(other))
    code, found = verify(shipped, other, capsys)
    assert code == ExitCode.FAILED
    assert found["verdict"]["problems"][0].startswith("the verdict is of another file")


def test_a_key_signs_a_verdict_so_that_who_has_it_sees_a_forged_one(
    whole: Whole, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = tmp_path / "key"
    key.write_text("0123456789abcdef0123456789abcdef\n")
    write_report(judged(whole), None, read_key(str(key)))
    code, found = verify(whole, whole.file(), capsys, "--key", str(key))
    assert (code, found["verdict"]["notes"]) == (ExitCode.DONE, [])
    code, found = verify(whole, whole.file(), capsys)
    assert "the signature was not checked" in found["verdict"]["notes"][0]
    forged = sealed({**json.loads(beside(whole.file()).read_text()), "passed": True, "limits": {}}, None)
    for place in (beside(whole.file()), whole.run.verdict(forged["file"]["sha256"], forged["sha256"])):
        place.write_text(json.dumps(forged))
    code, found = verify(whole, whole.file(), capsys, "--key", str(key))
    assert (code, found["verdict"]["problems"]) == (ExitCode.FAILED, ["the verdict was not signed with this key"])
    key.write_text("short")
    with pytest.raises(OperatorError, match=r"--key — .* has 5 bytes; allowed at least 16"):
        read_key(str(key))


def test_read_only_folders_get_no_verdict_and_the_report_says_so(whole: Whole, tmp_path: Path) -> None:
    found = judged(whole)
    out = whole.run.out("gguf")
    shutil.rmtree(whole.run.root / "verdicts", ignore_errors=True)
    (whole.run.root / "verdicts").write_text("a file where the folder would be")
    out.rename(out.with_name("gone"))  # as root, modes forbid nothing
    written = write_report(found, tmp_path / "report", None)
    assert len(written.notes) == 2
    assert {path.name for path in written.files} == {SHIP_JSON, CARD, "curves-tuned.png"}
    (tmp_path / "file").write_text("")
    with pytest.raises(OperatorError, match=r"--out — .* cannot be written"):
        write_report(found, tmp_path / "file" / "in", None)


def test_the_command_judges_and_ends_with_its_codes(
    whole: Whole, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--runs-dir", str(whole.runs)]
    assert cockpit("ship", "last", "--out", str(tmp_path / "report"), *where) == ExitCode.DONE
    shown = capsys.readouterr().out
    assert "passed: mine-Q8_0.gguf" in shown
    assert "✓" in shown
    limits = tmp_path / "limits.toml"
    limits.write_text("[ship]\nrows = 1000\n")
    words = ["ship", str(whole.file()), "--limits", str(limits), "--json", *where]
    assert cockpit(*words) == ExitCode.REFUSED
    assert json.loads(capsys.readouterr().out)["passed"] is False


@pytest.mark.parametrize("proved", [True, False])
def test_a_run_whose_exported_files_are_gone_says_which(
    proved: bool, whole: Whole, capsys: pytest.CaptureFixture[str]
) -> None:
    file = whole.file()
    file.unlink()
    if not proved:
        (file.parent / "parity.json").unlink()
    for words in (["last"], ["last:gguf", "--file", "Q8_0"]):
        assert cockpit("ship", *words, "--runs-dir", str(whole.runs)) == ExitCode.MISTAKE
        assert f"files that are missing now: {file}" in capsys.readouterr().err
    whole.file("F16").unlink()
    assert cockpit("ship", "last", "--runs-dir", str(whole.runs)) == ExitCode.MISTAKE
    assert "missing now" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["none.gguf"], "no file"),
        (["last", "--file", "Q4_K_M"], "0 of them are Q4_K_M"),
        (["last:merged"], "has no finished export"),
        (["last", "--limits", "none.toml"], "there is no such file"),
        (["last", "--results", "none.json"], "--results — no file"),
        (["last", "--key", "none"], "--key — none cannot be read"),
    ],
)
def test_mistakes_end_with_status_2_and_judge_nothing(
    words: list[str],
    problem: str,
    original: Whole,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cockpit("ship", *words, "--runs-dir", str(original.runs)) == ExitCode.MISTAKE
    assert problem in capsys.readouterr().err
    assert not RunDir(original.run.root).shipped("mine-Q8_0").exists()
