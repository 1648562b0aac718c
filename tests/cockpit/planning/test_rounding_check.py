"""A merge that was rounded to 4 bits, and what loads it in 4 bits."""

from __future__ import annotations

from pathlib import Path

from cockpit.planning.base_check import lost_in_four_bits
from recipes.load import load_recipe_text

RECIPE = """schema = 1
name = "x"
[[stage]]
name = "merged"
kind = "merge"
model = "./model"
adapter = "./adapter"
base_rounding = "{rounding}"
[[stage]]
name = "more"
kind = "finetune"
model = "{model}"
data = "./rows"
load_in_4bit = {four}
"""


def said(folder: Path, rounding: str, model: str, four: str) -> list[str]:
    for name in ("model", "adapter", "rows"):
        (folder / name).mkdir(exist_ok=True)
    text = RECIPE.format(rounding=rounding, model=model, four=four)
    return list(lost_in_four_bits(load_recipe_text(text, folder / "x.toml")))


def test_a_stage_that_rounds_a_rounded_merge_again_is_warned_that_the_merge_is_lost(tmp_path: Path) -> None:
    (warning,) = said(tmp_path, "nf4", "merged", "true")
    assert warning.startswith("more.load_in_4bit — rounds merged to 4 bits again, and base_rounding = nf4 has")
    assert said(tmp_path, "none", "merged", "true") == []
    assert said(tmp_path, "nf4", "./model", "true") == []
    assert said(tmp_path, "nf4", "merged", "false") == []
