"""A described machine: what its file may say, and what a recipe could not do there."""

from __future__ import annotations

from pathlib import Path

import pytest

from cockpit.planning.machine import machine_problems, not_looked_at, planned_there, read_machine
from cockpit.planning.stages import plan
from recipes.load import LoadedRecipe, load_recipe
from recipes.problems import OperatorError, RecipeError
from recipes.shipped import shipped_recipe

SPARK = """
name = "a Spark"
memory_gib = 128
unified_memory = true
[parameters]
"org/big" = 14_770_033_664
[[gpu]]
name = "GB10"
memory_gib = 1
compute_capability = "12.1"
"""
RECIPE = """
schema = 1
name = "there"
[[stage]]
name = "tuned"
kind = "finetune"
model = "org/big"
data = "~/no/such/rows.jsonl"
bf16 = true
[[stage]]
name = "merged"
kind = "merge"
model = "org/big"
adapter = "tuned"
[[stage]]
name = "after"
kind = "evaluate"
model = "merged"
data = "~/no/such/rows.jsonl"
"""


def _described(folder: Path, text: str) -> Path:
    file = folder / "machine.toml"
    file.write_text(text)
    return file


def _recipe(folder: Path, *sets: str, text: str = RECIPE) -> LoadedRecipe:
    file = folder / "recipe.toml"
    file.write_text(text)
    return load_recipe(file, sets, paths_here=False)


def test_a_recipe_of_another_machine_needs_none_of_its_files_here(tmp_path: Path) -> None:
    machine = read_machine(_described(tmp_path, SPARK))
    loaded = _recipe(tmp_path)
    assert machine_problems(loaded, machine) == []
    assert not_looked_at(loaded) == ["org/big", "~/no/such/rows.jsonl"]


def test_weights_that_exceed_the_memory_are_a_problem_of_the_stage_that_loads_them(tmp_path: Path) -> None:
    machine = read_machine(_described(tmp_path, SPARK.replace("unified_memory = true", "")))
    found = machine_problems(_recipe(tmp_path), machine)
    assert [(problem.key, problem.line) for problem in found] == [("tuned.model", 7), ("after.model", 18)]
    assert found[0].message == "the weights alone are 27.5 GiB; a Spark has 1 GiB"
    assert found[1].message == found[0].message, (
        "an evaluation loads the type of the model's files, which may be 16 bits"
    )
    assert ("load_in_4bit" in found[0].hint, found[1].hint) == (True, ""), (
        "only an adapter's base can be in 4 bits there"
    )
    wide = machine_problems(_recipe(tmp_path, "after.dtype=float32"), machine)
    assert wide[1].message == "the weights alone are 55.0 GiB; a Spark has 1 GiB"


def test_a_training_of_all_weights_needs_their_gradients_and_the_optimizer_too(tmp_path: Path) -> None:
    machine = read_machine(_described(tmp_path, SPARK))
    file = tmp_path / "full.toml"
    file.write_text(RECIPE.split('[[stage]]\nname = "merged"')[0].replace("bf16 = true", 'output = "model"'))
    found = machine_problems(load_recipe(file, paths_here=False), machine)
    assert found[0].message == "weights, gradients and optimizer need 220 GiB; a Spark has 128 GiB"


def test_bfloat16_before_ampere_is_a_problem(tmp_path: Path) -> None:
    machine = read_machine(_described(tmp_path, SPARK.replace("12.1", "7.5")))
    assert [problem.key for problem in machine_problems(_recipe(tmp_path), machine)] == ["tuned.bf16"]
    assert machine_problems(_recipe(tmp_path, "tuned.bf16=false"), machine) == []


def test_packages_and_devices_that_the_machine_lacks_are_named(tmp_path: Path) -> None:
    listed = 'packages = ["msgspec", "Pydantic", "torch", "transformers", "peft", "safetensors"]\n'
    machine = read_machine(_described(tmp_path, SPARK.replace("[parameters]", listed + "[parameters]", 1)))
    found = machine_problems(_recipe(tmp_path, "tuned.devices=['0', '3']"), machine)
    said = [problem.words for problem in found if problem.key.startswith("tuned.")]
    assert "a Spark lacks accelerate" in said[0]
    assert "a Spark has 1 GPUs; got 3" in said[1]


def test_all_mistakes_of_a_description_are_reported_with_their_lines(tmp_path: Path) -> None:
    file = _described(tmp_path, 'name = "x"\nmemory_gib = "x"\nmemory = 1\n[[gpu]]\nmemory_gib = -1\n')
    with pytest.raises(RecipeError) as caught:
        read_machine(file)
    assert [(problem.line, problem.key) for problem in caught.value.problems] == [
        (2, "memory_gib"),
        (3, "memory"),
        (4, "gpu[0].compute_capability"),
        (5, "gpu[0].memory_gib"),
    ]
    with pytest.raises(OperatorError, match="no file"):
        read_machine(tmp_path / "none.toml")


@pytest.mark.parametrize("name", ["csdl-14b", "qwen2.5-coder-7b-cpu", "codeanvil-6.7b-qlora"])
def test_the_recipes_of_large_models_have_no_problem_on_their_machines(tmp_path: Path, name: str) -> None:
    path = shipped_recipe(name)
    assert path is not None
    machine = read_machine(_described(tmp_path, SPARK))
    assert machine_problems(load_recipe(path, paths_here=False), machine) == []


UNSLOTH = ("tuned.backend=unsloth", "tuned.python=/opt/unsloth/bin/python")
SERVER = """
name = "a server"
memory_gib = 512
packages = ["torch==2.13.0", "transformers==5.23.0", "trl==1.16.0", "peft==0.21.2", "accelerate==1.15.0", "safetensors",
    "msgspec", "pydantic"]
[environments]
"/opt/unsloth/bin/python" = ["torch", "transformers==%s", "trl==1.15.0", "peft==0.21.2", "accelerate", "safetensors",
    "msgspec", "pydantic", "unsloth==2026.10.9", "unsloth_zoo==2026.10.9"]
"""


def _found(folder: Path, machine: str, *sets: str) -> list[str]:
    found = machine_problems(_recipe(folder, *sets), read_machine(_described(folder, machine)))
    return [f"{one.key} {one.message}" for one in found if one.key.startswith("tuned.")]


def test_a_described_environment_is_asked_for_the_versions_of_its_backend(tmp_path: Path) -> None:
    assert _found(tmp_path, SERVER % "5.17.0", *UNSLOTH) == []
    assert _found(tmp_path, SERVER % "5.23.0", *UNSLOTH) == [
        "tuned.backend a server has transformers 5.23.0; backend = unsloth is tested with 5.17.*"
    ]
    without = [one for one in UNSLOTH if "python" not in one]
    assert _found(tmp_path, SERVER % "5.17.0", *without)[0] == "tuned.kind a server lacks unsloth, unsloth_zoo"
    assert _found(tmp_path, SERVER % "5.17.0") == []
    assert _found(tmp_path, (SERVER % "5.17.0").replace("peft==0.21.2", "peft==0.20.0"))[0] == (
        "tuned.kind a server has peft 0.20.0; backend = hf is tested with 0.21.*"
    )


@pytest.mark.parametrize(("capability", "refused"), [("7.0", False), ("6.1", True)])
def test_a_described_card_below_the_lowest_of_unsloth_is_refused(
    tmp_path: Path, capability: str, refused: bool
) -> None:
    card = f'{SERVER % "5.17.0"}[[gpu]]\nname = "a card"\nmemory_gib = 16\ncompute_capability = "{capability}"\n'
    found = _found(tmp_path, card, *UNSLOTH, "tuned.bf16=false")
    wanted = "tuned.backend a card of a server has compute capability 6.1, and Unsloth requires 7.0"
    assert found == ([wanted] if refused else [])


def test_unsloth_has_no_8_bit_optimizer_where_a_described_machine_has_no_card(tmp_path: Path) -> None:
    found = _found(tmp_path, SERVER % "5.17.0", *UNSLOTH, "tuned.optim=adamw_8bit")
    assert any(one.startswith("tuned.optim Unsloth has no adamw_8bit") for one in found)


@pytest.mark.parametrize(
    ("capability", "sets", "words"),
    [
        ("12.1", (), "bfloat16, by GB10 (compute capability 12.1)"),
        ("12.1", ('tuned.base_dtype="float16"',), "capability 12.1), over a float16 base"),
        ("6.1", (), "float32: GB10 (compute capability 6.1) does not compute in bfloat16"),
        ("7.5", (), "float16 with a scaled loss, by GB10 (compute capability 7.5)"),
        ("7.5", ("tuned.fp16=false",), "float32: GB10 (compute capability 7.5) does not compute in bfloat16"),
        ("9.0", ("tuned.fp16=true",), "float16 with a scaled loss, by fp16"),
        ("9.0", ("tuned.bf16=false",), "TF32, by bf16"),
        ("9.0", ("tuned.bf16=false", 'tuned.float32_matmul_precision="highest"'), "float32, by bf16"),
    ],
)
def test_the_number_format_of_a_training_there_is_that_of_its_gpu(
    tmp_path: Path, capability: str, sets: tuple[str, ...], words: str
) -> None:
    machine = read_machine(_described(tmp_path, SPARK.replace("12.1", capability)))
    loaded = _recipe(tmp_path, *sets, text=RECIPE.replace("bf16 = true\n", ""))
    made = planned_there(plan(loaded.recipe, loaded.graph), loaded, machine)
    said = {stage.name: stage.precision for stage in made.stages}
    assert words in (said["tuned"] or "")
    assert said["after"] is None


def test_liger_needs_a_gpu_there(tmp_path: Path) -> None:
    machine = read_machine(_described(tmp_path, SPARK.partition("[[gpu]]")[0]))
    [problem] = machine_problems(_recipe(tmp_path, "tuned.use_liger_kernel=true", "tuned.bf16=false"), machine)
    assert (problem.key, problem.hint) == ("tuned.use_liger_kernel", "set use_liger_kernel = false")


def test_what_this_machine_lacks_for_a_training_is_said_at_its_field(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cockpit.planning import compute_check

    monkeypatch.setattr(compute_check, "nvidia_gpus", lambda: 0)
    monkeypatch.setattr(compute_check, "cpp_compiler", lambda: "")
    loaded = _recipe(tmp_path, "tuned.use_liger_kernel=true", "tuned.torch_compile=true")
    found = {problem.key: problem for problem in compute_check.compute_problems(loaded)}
    assert found.keys() == {"tuned.use_liger_kernel", "tuned.torch_compile"}
    assert "install g++" in found["tuned.torch_compile"].hint
    monkeypatch.setattr(compute_check, "nvidia_gpus", lambda: 1)
    monkeypatch.setattr(compute_check, "cpp_compiler", lambda: "/usr/bin/c++")
    assert compute_check.compute_problems(loaded) == []
