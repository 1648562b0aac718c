"""cockpit plan finds the shapes of a wanted number of parameters, and prints one that a recipe takes."""

from __future__ import annotations

import json
import tomllib
from typing import Any

import pytest

from cockpit.cli import main
from cockpit.planning.solve_shape import WITHIN, Wanted, solve_shape
from recipes.stages.decoder.sizes import Sizes
from recipes.stages.pretrain import PretrainStage

PLANNED = Sizes(
    hidden_size=2048,
    intermediate_size=7680,
    num_hidden_layers=24,
    num_attention_heads=16,
    num_key_value_heads=8,
    head_dim=128,
    vocab_size=32_000,
    tie_word_embeddings=True,
)
RANGES: dict[str, Any] = {"layers": range(24, 29), "heads": range(16, 21), "kv_heads": range(4, 9)}


@pytest.mark.parametrize("ranges", [{}, RANGES], ids=["any", "in ranges"])
def test_the_best_shape_of_1_5_billion_is_the_one_that_was_found_by_hand(ranges: dict[str, Any]) -> None:
    best, *others = solve_shape(Wanted(1_500_000_000, 32_000, **ranges))
    assert best.sizes == PLANNED
    assert best.sizes.parameters == 1_500_088_320
    for one in (best, *others):
        sizes = one.sizes
        assert abs(sizes.parameters - 1.5e9) <= WITHIN * 1.5e9
        assert sizes.hidden_size % 256 == sizes.queries % 256 == sizes.intermediate_size % 256 == 0
        assert sizes.num_attention_heads % sizes.num_key_value_heads == 0
        assert abs(one.ratio - 4) >= abs(best.ratio - 4)


def test_a_shape_with_four_times_the_width_is_beyond_1_5_billion() -> None:
    found = solve_shape(Wanted(1_500_000_000, 32_000, **RANGES), within=0.05, most=100)
    assert [one.sizes.parameters for one in found if one.ratio == 4][:1] == [1_525_254_144]


def test_the_printed_shape_is_one_that_a_stage_takes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--solve-params", "1.5B", "--layers", "24-28", "--heads", "16-20", "--kv-heads", "4-8"]) == 0
    shown = capsys.readouterr().out
    assert "1,500,088,320    +0.006%" in shown
    fields = tomllib.loads(shown.partition("\n# ")[2].partition("\n")[2])
    stage = PretrainStage.model_validate({"name": "base", "kind": "pretrain", "data": "tokens", **fields})
    assert stage.sizes(32_000) == PLANNED


def test_heads_of_a_width_of_their_own_are_printed_with_it(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "--solve-params", "0.6B", "--model-type", "qwen3", "--vocab-size", "151936", "--json"]
    assert main(words) == 0
    best = json.loads(capsys.readouterr().out)[0]
    assert best.pop("model_type") == "qwen3"
    parameters, _deviation = best.pop("parameters"), best.pop("deviation")
    stage = PretrainStage.model_validate(
        {"name": "base", "kind": "pretrain", "data": "tokens", "model_type": "qwen3", **best}
    )
    assert stage.sizes(151_936).parameters == parameters


def test_without_a_near_shape_the_nearest_are_listed_and_it_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--solve-params", "10M", "--vocab-size", "16000", "--layers", "8"]) == 0
    printed = capsys.readouterr()
    assert "no shape is within" in printed.err
    assert "hidden_size = " in printed.out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--solve-params", "many"], "--solve-params — not a number of parameters; got"),
        (["--solve-params", "1e9"], "--solve-params — not a number of parameters; got"),
        (["--solve-params", "1B", "--layers", "9-3"], "--layers — not a range; got"),
        (["--solve-params", "1B", "--layers", "1-1000", "--heads", "1-1000"], "--layers, --heads — 1000000 pairs of"),
        (["--solve-params", "1B", "--vocab-size", "0"], "--vocab-size — out of range; got 0; allowed"),
        (["--solve-params", "1B", "--heads", "3", "--kv-heads", "2"], "no shape has these numbers"),
        (["--solve-params", "10M", "--layers", "6"], "feed-forward layer of 2 to 6 times the width"),
    ],
)
def test_a_wrong_number_is_named_with_what_is_allowed(
    words: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", *words]) == 2
    assert expected in capsys.readouterr().err


def test_where_the_vocabulary_alone_is_larger_that_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--solve-params", "1M"]) == 2
    assert "32000 tokens alone have 8,192,000 parameters" in capsys.readouterr().err
    assert main(["plan", "--solve-params", "1M", "--vocab-size", "2000", "--layers", "1"]) == 0
    assert "no shape is within 0.01% of 1M" in capsys.readouterr().err
