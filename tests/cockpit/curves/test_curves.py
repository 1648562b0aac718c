"""Curves as files: every value in the CSV, and in the pictures axes, units, spikes, gaps and evaluations."""

from __future__ import annotations

import csv
import io
import struct
import zlib
from pathlib import Path
from xml.etree import ElementTree

import pytest

from cockpit.cli import main
from cockpit.curves import font
from cockpit.curves.figure import PANEL, WIDTH, Dot, Figure, Label, Line, figure_of
from cockpit.curves.png import SCALE, png
from cockpit.curves.svg import svg
from cockpit.runs.reader import read_now
from engines.run_dir.paths import RunDir
from engines.words import ExitCode
from tests.cockpit.curves.curved_runs import ABSENT, NAN, SPIKE, curved_run
from tests.cockpit.keeping.finished_runs import made_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return curved_run(tmp_path_factory.mktemp("curves"))


def labels(figure: Figure) -> list[str]:
    return [shape.text for shape in figure.shapes if isinstance(shape, Label)]


def table(run: RunDir, capsysbinary: pytest.CaptureFixture[bytes], *words: str) -> list[dict[str, str]]:
    assert main(["metrics", str(run.root), *words]) == ExitCode.DONE
    return list(csv.DictReader(io.StringIO(capsysbinary.readouterr().out.decode())))


def test_the_csv_has_every_step_once_with_all_its_digits_and_spelled_nan(
    run: RunDir, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    rows = table(run, capsysbinary, "--csv")
    steps = [row for row in rows if row["loss"] or not row["eval_loss"]]
    assert [int(row["step"]) for row in steps] == list(range(1, 2001)), "replaced steps are left out, none is reduced"
    series = read_now(run).state.series("base", "loss")
    assert [float(row["loss"]) for row in steps[:200]] == list(series.y[:200])
    assert steps[NAN - 1]["loss"] == "NaN"
    assert steps[ABSENT - 1]["loss"] == ""
    assert steps[9]["extra"] == "10.0"
    assert {row["attempt"] for row in steps} == {"1", "2"}
    evaluations = [row for row in rows if row["eval_loss"]]
    assert [row["step"] for row in evaluations] == ["1200", "1400", "1600", "1800", "2000"]


def test_a_chart_has_its_stage_units_axes_evaluations_and_scale(run: RunDir) -> None:
    state = read_now(run).state
    figure = figure_of(state, log=["loss"])
    words = labels(figure)
    assert "base: loss (nats per token, logarithmic)" in words
    assert "base: tokens_per_second (tokens per second)" in words
    assert words.count("step") == 6
    assert "2k" in words
    assert "5 evaluations, last 1.313" in " ".join(words)
    assert len([shape for shape in figure.shapes if isinstance(shape, Dot)]) == 5


def test_the_loss_of_pairs_has_its_own_unit(tmp_path: Path) -> None:
    state = read_now(curved_run(tmp_path, 1001, kind="dpo")).state
    assert "base: loss (mean over pairs)" in labels(figure_of(state))


def test_a_spike_is_drawn_and_a_missing_value_interrupts_the_line(run: RunDir) -> None:
    figure = figure_of(read_now(run).state)
    curves = [shape for shape in figure.shapes if isinstance(shape, Line) and shape.colour == "#1f77b4"]
    first, second = curves[0], curves[1]
    assert first.points[-1][0] < second.points[0][0], "a gap at the values that are missing"
    highest = min(y for line in curves[:2] for _, y in line.points)
    assert highest < 100, f"the spike of step {SPIKE} reaches the top of its chart"


def test_a_long_curve_is_reduced_to_a_few_points_for_each_pixel_and_keeps_its_extremes() -> None:
    from cockpit.curves.figure import _Plot, _reduced
    from cockpit.runs.series import Series

    series = Series()
    series.extend((float(n), 9.0 if n == 54_321 else 1.0) for n in range(100_000))
    plot = _Plot(0, 0, 500, 100, series, Series(), log=False)
    points = _reduced(list(zip(series.x, series.y, strict=True)), plot)
    assert len(points) < 4 * 502
    assert (54_321.0, 9.0) in points


def test_the_svg_is_xml_whose_texts_are_those_of_the_figure(run: RunDir) -> None:
    figure = figure_of(read_now(run).state)
    figure.shapes.append(Label((0, 0), "<script>&\"' x</script>"))
    tree = ElementTree.fromstring(svg(figure))
    assert [node.text for node in tree.iter() if node.tag.endswith("text")] == labels(figure)


def test_the_png_has_the_size_of_the_figure_and_its_colours(run: RunDir) -> None:
    data = png(figure_of(read_now(run).state))
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height, depth, kind = struct.unpack(">IIBB", data[16:26])
    assert (width, depth, kind) == (WIDTH * SCALE, 8, 2)
    start = data.index(b"IDAT") + 4
    [length] = struct.unpack(">I", data[start - 8 : start - 4])
    pixels = zlib.decompress(data[start : start + length])
    assert len(pixels) == height * (width * 3 + 1)
    for colour in ("1f77b4", "d62728", "ffffff"):
        assert bytes.fromhex(colour) in pixels


def test_every_printable_character_has_its_own_letter() -> None:
    letters = [font.columns_of(chr(code)) for code in range(32, 127)]
    assert {len(letter) for letter in letters} == {5}
    assert len(set(letters)) == len(letters)
    assert font.columns_of("★") not in letters


def test_a_run_without_steps_says_so(tmp_path: Path) -> None:
    figure = figure_of(read_now(made_run(tmp_path, "a")).state)
    assert "no stage of this run has steps" in labels(figure)
    assert figure.height < 2 * PANEL


def test_a_picture_is_a_file_and_wrong_names_are_refused(
    run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "x.svg"
    assert main(["metrics", str(run.root), "--svg", "--out", str(out)]) == ExitCode.DONE
    assert out.read_text().startswith("<svg ")
    assert main(["metrics", str(run.root), "--svg", "--log", "los"]) == ExitCode.MISTAKE
    assert "allowed: loss" in capsys.readouterr().err
    assert main(["metrics", str(run.root), "--stage", "bas"]) == ExitCode.MISTAKE
    assert main(["metrics", str(run.root), "--out", str(tmp_path / "no" / "x.csv")]) == ExitCode.MISTAKE
    assert "could not be written" in capsys.readouterr().err
