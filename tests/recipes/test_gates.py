"""A gate names a metric that its stage will report."""

from __future__ import annotations

from pathlib import Path

import pytest

from recipes.load import load_recipe_text
from recipes.problems import Problem, RecipeError

STAGE = 'schema = 1\nname = "x"\n[[stage]]\nname = "s"\n{fields}\n'
STAGE += '[[stage.gate]]\nmetric = "{metric}"\nop = "<"\nvalue = 1\n'
FAKE = 'kind = "fake"'
TUNE = 'kind = "finetune"\nmodel = "org/base"\ndata = "./messages"'
SCORE = 'kind = "evaluate"\nmodel = "org/base"\ndata = "./messages"'
MERGE = 'kind = "merge"\nmodel = "org/base"\nadapter = "./adapter"'
EXPORT = 'kind = "export"\nmodel = "org/base"\nfile_types = ["Q4_K_M"]'


def problems(folder: Path, fields: str, metric: str) -> list[Problem]:
    for name in ("messages", "adapter"):
        (folder / name).mkdir(exist_ok=True)
    try:
        load_recipe_text(STAGE.format(fields=fields, metric=metric), folder / "r.toml")
    except RecipeError as error:
        return error.problems
    return []


@pytest.mark.parametrize(
    ("fields", "metric"),
    [
        (FAKE, "loss"),
        (TUNE, "loss"),
        (f"{TUNE}\neval_steps = 5", "eval_loss"),
        (SCORE, "perplexity"),
        (MERGE, "top1"),
        (EXPORT, "q4_k_m_mean_kl"),
        (EXPORT, "files_refused"),
        (f'{EXPORT}\nadapters = ["./adapter"]', "adapter_q4_k_m_top1"),
        ('kind = "tokenizer"\ndata = "./messages"', "parity_texts"),
        ('kind = "prepare"\noutput = "text"\nsource = "python-stdlib"', "documents"),
    ],
)
def test_a_gate_on_a_metric_that_the_stage_reports_is_accepted(tmp_path: Path, fields: str, metric: str) -> None:
    assert problems(tmp_path, fields, metric) == []


@pytest.mark.parametrize(
    ("fields", "metric", "words"),
    [
        (FAKE, "accuracy", 'got "accuracy"; allowed "loss", "steps", "tokens"'),
        (TUNE, "los", "did you mean loss"),
        (TUNE, "eval_loss", "set eval_steps to the number of steps"),
        (SCORE, "eval_loss", 'allowed "loss", "perplexity"'),
        (f"{MERGE}\nparity_positions = 0", "mean_kl", "set parity_positions"),
        (f"{EXPORT}\nparity_positions = 0", "q4_k_m_top1", "set parity_positions"),
        (EXPORT, "q8_0_mean_kl", "did you mean q4_k_m_mean_kl"),
        ('kind = "prepare"\noutput = "text"\nsource = "python-stdlib"', "loss", 'allowed "documents"'),
    ],
)
def test_a_gate_on_a_metric_that_no_stage_makes_is_located(
    tmp_path: Path, fields: str, metric: str, words: str
) -> None:
    (problem,) = problems(tmp_path, fields, metric)
    assert problem.key == "s.gate[0].metric"
    assert problem.line == 5 + fields.count("\n") + 2
    assert words in str(problem)


def test_a_gate_from_the_defaults_of_its_kind_is_located_there() -> None:
    text = 'schema = 1\nname = "x"\n[defaults.fake]\ngate = [{metric = "acc", op = "<", value = 1}]\n'
    with pytest.raises(RecipeError, match=r":4  defaults\.fake\.gate\[0\]\.metric — .*got \"acc\""):
        load_recipe_text(text + f'[[stage]]\nname = "s"\n{FAKE}\n', "r.toml")


def test_another_mistake_of_the_stage_is_reported_before_its_gates(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, f"{FAKE}\nmax_steps = 0", "accuracy")
    assert problem.key == "s.max_steps"
