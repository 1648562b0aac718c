"""Loading: complete recipes, and every error with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from recipes.load import load_recipe, load_recipe_text
from recipes.problems import OperatorError, RecipeError
from recipes.schema import Recipe
from recipes.shipped import shipped_recipe, shipped_recipes
from recipes.stages.finetune import FinetuneStage
from recipes.stages.prepare import PrepareMessages, PrepareText
from tests.recipes.recipe_texts import FAKE, SOUND, found, problems_of

HERE = Path("/nowhere/r.toml")

SIX_MISTAKES = """\
schema = 1
name = "six"

[defaults.finetune]
learning_rate = 7.0

[[stage]]
name = "base"
kind = "pretrain"
data = "/"
hidden_size = 100
intermediate_size = 256
num_hidden_layers = 2
num_attention_heads = 3
num_key_value_heads = 1
learnin_rate = 2

[[stage]]
name = "atlas"
kind = "finetune"
model = "bse"
data = "/"
max_steps = "20"
[stage.retry]
max_attempts = 9
"""


def test_defaults_apply_to_stages_lists_replace_and_tables_merge() -> None:
    recipe = load_recipe_text(SOUND, HERE).recipe
    tuned, corpus, questions, second = recipe.stage
    assert isinstance(tuned, FinetuneStage)
    assert isinstance(second, FinetuneStage)
    assert isinstance(corpus, PrepareText)
    assert isinstance(questions, PrepareMessages)
    assert tuned.learning_rate == 1e-4
    assert second.learning_rate == 2e-4
    assert tuned.retry.max_attempts == 2
    assert tuned.retry.learning_rate_factor == 0.25
    assert second.retry.max_attempts == 3
    assert tuned.target_modules == ["q_proj", "v_proj"]
    assert second.target_modules == ["k_proj"]
    assert (corpus.seed, questions.seed) == (7, 7)
    assert second.gate[0].value == 3.0


def test_resolved_values_give_the_recipe_again() -> None:
    loaded = load_recipe_text(SOUND, HERE)
    assert Recipe.model_validate(loaded.resolved) == loaded.recipe
    assert "defaults" not in loaded.resolved


def test_line_of_a_value_is_the_line_that_sets_it() -> None:
    loaded = load_recipe_text(SOUND, HERE, ["tuned.seed=5"])
    assert loaded.line_of("tuned", "learning_rate") == 5
    lines = SOUND.splitlines()
    assert lines[loaded.line_of("second-tuned", "learning_rate") - 1] == "learning_rate = 2e-4"
    assert lines[loaded.line_of("questions", "retry.max_attempts") - 1] == "  max_attempts = 2"
    assert lines[loaded.line_of("tuned", "retry.max_attempts") - 1] == "retry.max_attempts = 2"
    assert lines[loaded.line_of("tuned", "retry.learning_rate_factor") - 1].startswith("retry = {")
    assert lines[loaded.line_of("tuned", "max_steps") - 1] == "[[stage]]"
    assert loaded.line_of("tuned", "seed") == 0
    assert loaded.line_of(None, "name") == 2


def test_six_mistakes_are_six_located_problems() -> None:
    problems = found(SIX_MISTAKES)
    assert list(problems) == [
        (5, "defaults.finetune.learning_rate"),
        (11, "base.hidden_size"),
        (16, "base.learnin_rate"),
        (21, "atlas.model"),
        (23, "atlas.max_steps"),
        (25, "atlas.retry.max_attempts"),
    ]
    assert "did you mean learning_rate" in problems[16, "base.learnin_rate"].hint
    assert problems[11, "base.hidden_size"].got == "100 and 3"
    assert "did you mean base" in problems[21, "atlas.model"].hint
    assert problems[23, "atlas.max_steps"].got == '"20"'
    text = str(problems[5, "defaults.finetune.learning_rate"])
    assert text == (
        "/nowhere/r.toml:5  defaults.finetune.learning_rate — out of range; got 7.0; allowed a number > 0 and ≤ 1"
    )


def test_the_error_lists_every_problem_on_a_separate_line() -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe_text(SIX_MISTAKES, HERE)
    assert len(str(caught.value).splitlines()) == 6
    assert isinstance(caught.value, OperatorError)


@pytest.mark.parametrize(
    ("old", "new", "line", "key", "message"),
    [
        ("schema = 1  ", "schema = 2  ", 1, "schema", "got 2; allowed 1"),
        ("schema = 1  ", "schema = true", 1, "schema", "got true"),
        ("schema = 1  ", "schema = 1.0", 1, "schema", "got 1.0"),
        ('name = "sound"', 'name = "A B"', 2, "name", "1 to 40 characters of a-z"),
        ('name = "sound"', "name = 2026-11-20", 2, "name", "got 2026-11-20"),
        ('name = "sound"', 'name = "s"\nnme = 1', 3, "nme", "did you mean name"),
        ("[defaults.finetune]", "[defaults.finetun]", 4, "defaults.finetun", "did you mean finetune"),
        ("seed = 7", "sed = 7", 10, "defaults.prepare.sed", "did you mean seed"),
        ("seed = 7", 'name = "x"', 10, "defaults.prepare.name", "cannot have a default"),
        ("seed = 7", "vocab_size = 7", 10, "defaults.prepare.vocab_size", "it is a field of tokenizer"),
        ("max_attempts = 3, ", "max_attempts = 4, ", 6, "defaults.finetune.retry.max_attempts", "got 4"),
        ('"q_proj", "v_proj"', '"q_proj",\n  3', 8, "defaults.finetune.target_modules[1]", "got 3; allowed a string"),
        ('["q_proj", "v_proj"]', '"q_proj"', 7, "defaults.finetune.target_modules", 'did you mean ["q_proj"]?'),
        ('"q_proj", "v_proj"', '"q_proj", "all-linear"', 7, "defaults.finetune.target_modules", "cannot be combined"),
        ("lora_alpha = 3.2e1", "lora_alpha = 1e400", 17, "tuned.lora_alpha", "not a finite number"),
        ("lora_alpha = 3.2e1", "lora_alpha = nan", 17, "tuned.lora_alpha", "not a finite number"),
        ("lora_alpha = 3.2e1", "seed = 99999999999999999999", 17, "tuned.seed", "64 bits"),
        ("lora_alpha = 3.2e1", "r = 16.0", 17, "tuned.r", "did you mean 16?"),
        ("lora_alpha = 3.2e1", 'r = "16"', 17, "tuned.r", "did you mean 16 without quotes?"),
        ("lora_alpha = 3.2e1", "bf16 = 1", 17, "tuned.bf16", "did you mean true?"),
        ("lora_alpha = 3.2e1", "lr = 1", 17, "tuned.lr", "did you mean learning_rate"),
        ("lora_alpha = 3.2e1", "rank = 1", 17, "tuned.rank", "did you mean r?"),
        ("lora_alpha = 3.2e1", "max_attempts = 1", 17, "tuned.max_attempts", "did you mean retry.max_attempts"),
        ("lora_alpha = 3.2e1", "hidden_size = 1", 17, "tuned.hidden_size", "it is a field of pretrain"),
        ("lora_alpha = 3.2e1", "guards = 3", 17, "tuned.guards", "a table with grad_norm"),
        ("retry.max_attempts = 2", "retry.max_attempt = 2", 18, "tuned.retry.max_attempt", "did you mean max_attempts"),
        ("  max_attempts = 2", "  max_attempts = 0", 32, "questions.retry.max_attempts", "got 0"),
        ('output = "text"', 'output = "txt"', 23, "corpus.output", "did you mean text"),
        ('output = "text"\n', "", 20, "corpus.output", "required"),
        ('source = "python-stdlib"', 'source = "python-stdlb"', 24, "corpus.source", "did you mean python-stdlib"),
        ('source = "python-stdlib"\n', "", 20, "corpus.source", "required: file or folder to read"),
        ('kind = "finetune"\nmodel', 'kind = "finetun"\nmodel', 14, "tuned.kind", "did you mean finetune"),
        ('op = "<"', 'op = "=<"', 44, "second-tuned.gate[0].op", 'allowed "<", "<="'),
        ('metric = "loss"\n', "", 42, "second-tuned.gate[0].metric", "required"),
        ('name = "second-tuned"', 'name = "tuned"', 35, "tuned.name", "two stages have this name"),
    ],
)
def test_a_mistake_is_located(old: str, new: str, line: int, key: str, message: str) -> None:
    assert old in SOUND
    problems = found(SOUND.replace(old, new, 1))
    assert (line, key) in problems, [str(problem) for problem in problems.values()]
    assert message in str(problems[line, key])


def test_a_bad_default_is_one_problem_however_many_stages_use_it() -> None:
    text = SOUND.replace("learning_rate = 1e-4", "learning_rate = 0").replace("learning_rate = 2e-4\n", "")
    assert list(found(text)) == [(5, "defaults.finetune.learning_rate")]


def test_a_bad_default_of_a_kind_without_stages_is_a_problem() -> None:
    assert list(found(FAKE + "[defaults.export]\nmax_length = 1\n")) == [(8, "defaults.export.max_length")]


def test_a_default_of_prepare_reaches_only_the_types_that_have_it() -> None:
    text = SOUND.replace("seed = 7", "max_bytes = 5")
    stages = {stage.name: stage for stage in load_recipe_text(text, HERE).recipe.stage}
    corpus = stages["corpus"]
    assert isinstance(corpus, PrepareText)
    assert corpus.max_bytes == 5


@pytest.mark.parametrize(
    "text",
    [
        "",
        "schema = 1\nname = 'x'\n",
        "schema = 1\nname = 'x'\nstage = 3\n",
        "schema = 1\nname = 'x'\nstage = []\n",
        "schema = 1\nname = 'x'\nstage = ['a', 3]\n",
        "schema = 1\nname = 'x'\ndefaults = 3\n" + FAKE[22:],
        "schema = 1\nname = 'x'\ndefaults.fake = 3\n" + FAKE[22:],
        FAKE.replace('"fake"', "{ a = 1 }"),
        FAKE.replace('"one"', "[1]"),
        FAKE + "kind2 = 1\n",
        FAKE * 1 + "[stage.gate]\nmetric = 1\n",
        "schema = 1\nname = 'x'\n[stage]\nname = 'a'\nkind = 'fake'\n",
        "schema = 1\nname = 'x'\n" + "[[stage]]\n" * 5000,
    ],
)
def test_wrong_shapes_are_problems_with_lines(text: str) -> None:
    problems = problems_of(text, HERE)
    assert problems
    assert all(problem.line >= 1 for problem in problems)


def test_inline_stages_have_lines_too() -> None:
    text = (
        "schema = 1\nname = 'x'\nstage = [\n  {name = 'a', kind = 'fake'},\n  {name = 'b', kind = 'fake', data "
        "= 'c'},\n]\n"
    )
    assert list(found(text)) == [(5, "b.data")]


def test_paths_of_a_loaded_recipe_are_absolute(tmp_path: Path) -> None:
    (tmp_path / "sources").mkdir()
    (tmp_path / "model").mkdir()
    text = SOUND.replace('"python-stdlib"', '"sources"').replace('model = "org/name"', 'model = "./model"', 1)
    (tmp_path / "r.toml").write_text(text)
    loaded = load_recipe(tmp_path / "r.toml")
    tuned, corpus = loaded.recipe.stage[:2]
    assert isinstance(tuned, FinetuneStage)
    assert isinstance(corpus, PrepareText)
    assert tuned.model == str(tmp_path / "model")
    assert corpus.source == str(tmp_path / "sources")
    reference = loaded.graph.inputs["tuned"]["model"]
    assert (reference.origin, reference.path) == ("path", tmp_path / "model")


def test_only_the_field_source_may_name_the_standard_library() -> None:
    stage = '[[stage]]\nname = "gguf"\nkind = "export"\nmodel = "org/name"\nllama_cpp = "python-stdlib"\n'
    ((place, problem),) = found(FAKE + stage).items()
    assert place == (11, "gguf.llama_cpp")
    assert str(problem).endswith(
        'there is no such folder; got "python-stdlib"; allowed an existing folder, relative to the recipe\'s folder'
    )


def test_text_from_a_recipe_is_never_printed_raw() -> None:
    text = SOUND.replace("lora_alpha", '"\\u001b[31m\\u202ered"')
    (problem,) = found(text).values()
    assert "\x1b" not in str(problem)
    assert "\u202e" not in str(problem)


def test_every_shipped_recipe_loads() -> None:
    assert shipped_recipes()[0].stem == "demo"
    for path in shipped_recipes():
        load_recipe(path, paths_here=False)
    assert shipped_recipe("fake") in shipped_recipes()
    assert shipped_recipe("nothing") is None


def test_a_recipe_of_data_that_is_not_here_names_its_path_only() -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(shipped_recipe("qwen2.5-coder-7b-cpu") or "")
    assert [problem.key for problem in caught.value.problems] == ["interactions.data"]


def test_the_fake_recipe_shows_a_guard_a_retry_checkpoints_and_evaluations() -> None:
    path = shipped_recipe("fake")
    assert path is not None
    stages = load_recipe(path).resolved["stage"]
    assert [stage["kind"] for stage in stages] == ["fake", "fake"]
    assert stages[0]["nan_at_step"] > stages[0]["save_steps"]
    assert stages[0]["retry"]["max_attempts"] == 2
    assert all(stage["eval_steps"] for stage in stages)
    assert 10 < sum(stage["max_steps"] * stage["step_s"] for stage in stages) < 20


def test_the_widths_of_the_demo_quantize_without_falling_back() -> None:
    path = shipped_recipe("demo")
    assert path is not None
    (base,) = [stage for stage in load_recipe(path).resolved["stage"] if stage["kind"] == "pretrain"]
    assert base["hidden_size"] % 256 == 0
    assert base["intermediate_size"] % 256 == 0


def test_a_problem_that_the_validator_of_one_field_finds_names_the_field_once() -> None:
    wrong = SOUND.replace("learning_rate = 2e-4", 'learning_rate = 2e-4\nbnb_4bit_compute_dtype = "float16"')
    [problem] = problems_of(wrong, HERE)
    assert problem.key == "second-tuned.bnb_4bit_compute_dtype"
    assert problem.message.startswith("gradients below 6e-8 are 0 in float16 unless fp16 scales the loss")
    assert (problem.got, problem.allowed) == ("float16", "auto, float32, bfloat16")
