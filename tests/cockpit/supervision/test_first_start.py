"""The first start of a stage is recorded once: every later attempt, and the screen of its rows, has that date."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec

from cockpit.forms.rows_target import rows_of_run
from cockpit.planning.row_reader import RowReader
from cockpit.schedule.resolved_recipe import InputRef, RunRecipe
from cockpit.supervision.engine_process import write_stage_json
from engines.host import load_context
from engines.look.row_view import RowsRequest
from engines.run_dir.paths import RunDir
from engines.stage_file import moment, read_stage_file, write_stage_file
from recipes.load import load_recipe_text
from tests.engines.look.looked_at import CHATML, row, write_data, write_model

RECIPE = 'schema = 1\nname = "x"\n[[stage]]\nname = "tuned"\nkind = "finetune"\nmodel = "./model"\ndata = "./data"\n'


def _attempt(run: RunDir, plan: RunRecipe, attempt: int) -> Path:
    return write_stage_json(
        run,
        plan,
        "tuned",
        attempt,
        resume=None,
        learning_rate_scale=1.0,
        guard_trips=0,
        launch=1,
        expected=None,
        adjusted={},
    )


def test_a_later_attempt_and_the_rows_of_a_run_have_the_first_start(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", "{{ strftime_now('%d %b %Y') }}" + CHATML)
    data = write_data(tmp_path / "data", [row("q", "a")])
    loaded = load_recipe_text(RECIPE, tmp_path / "recipe.toml")
    inputs = {"model": InputRef("path", str(model), str(model)), "data": InputRef("path", str(data), str(data))}
    plan = RunRecipe(loaded.recipe, ["tuned"], {"tuned": inputs}, [])
    run = RunDir(tmp_path / "runs" / "20200229-2359-x")
    first = _attempt(run, plan, 1)
    written = read_stage_file(first)
    assert moment(written.first_start) == written.first_start != ""
    write_stage_file(first, msgspec.structs.replace(written, first_start="2020-02-29T23:59:00"))
    second = _attempt(run, plan, 2)
    assert load_context(read_stage_file(second), second).first_start == "2020-02-29T23:59:00"
    run.recipe_json.write_text(json.dumps(plan.to_json()))
    target = rows_of_run(run, "tuned")
    reader = RowReader(target.job, target.python)
    try:
        (view,) = reader.ask(RowsRequest(1)).views
    finally:
        reader.close()
    assert view.text.startswith("29 Feb 2020")
