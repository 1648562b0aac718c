from __future__ import annotations

import json
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any, cast

import pytest

from cockpit.launching import interpreters as preflight
from cockpit.launching.installing import install_command
from cockpit.launching.interpreters import CHOOSE_ANOTHER, check_here, check_interpreters
from recipes.problems import OperatorError
from recipes.schema import Recipe
from recipes.stages.fields import StageFields
from recipes.stages.kind import TESTED, TRAIN, UNSLOTH
from recipes.stages.registry import STAGE_KINDS, STAGE_TYPES, row_of


def recipe(*stages: dict[str, Any]) -> Recipe:
    given = [{"name": f"s{n}", "kind": "fake", **fields} for n, fields in enumerate(stages)]
    return Recipe.model_validate({"schema": 1, "name": "r", "stage": given})


def interpreter(folder: Path, answer: str, status: int = 0) -> str:
    """A program that is started like Python and prints a given answer."""
    path = folder / "python"
    path.write_text(f"#!{sys.executable}\nimport sys, time\nsys.stdout.write({answer!r})\nsys.exit({status})\n")
    path.chmod(0o755)
    return str(path)


def problem_of(found: Recipe, names: list[str] | None = None) -> OperatorError:
    with pytest.raises(OperatorError) as caught:
        check_interpreters(found, names or [stage.name for stage in found.stage])
    assert caught.value.hint
    return caught.value


def needs_of(stage: StageFields) -> tuple[str, ...]:
    return row_of(stage).needs(stage)


def test_every_tested_version_is_of_a_package_that_training_needs() -> None:
    assert set(TESTED["hf"]) <= {*TRAIN, "trl"}
    assert set(TESTED["unsloth"]) <= {*TRAIN, *UNSLOTH, "trl"}


def test_only_a_stage_that_imports_trl_needs_it() -> None:
    inputs = {"model": "/m", "data": "/d"}
    tuned, preferred, unsloth = (
        recipe({"name": "s", **inputs, **more}).stage[0]
        for more in (
            {"kind": "finetune"},
            {"kind": "dpo"},
            {"kind": "finetune", "backend": "unsloth", "python": "/u/bin/python"},
        )
    )
    assert ["trl" in needs_of(stage) for stage in (tuned, preferred, unsloth)] == [False, True, True]


def test_splitting_text_needs_no_tokenizer_library() -> None:
    text = recipe({"kind": "prepare", "output": "text", "source": "/x"}).stage[0]
    tokens = recipe({"kind": "prepare", "output": "tokens", "data": "/x", "tokenizer": "/y"}).stage[0]
    assert "sentencepiece" not in needs_of(text)
    assert "sentencepiece" in needs_of(tokens)


def test_this_interpreter_passes_for_a_stage_whose_needs_it_has() -> None:
    check_interpreters(recipe({}), ["s0"])
    check_interpreters(recipe({"python": sys.executable}), ["s0"])


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    lacking = replace(STAGE_KINDS["fake"], needs=lambda _stage: ("msgspec", "no-such-package", "nor-this"))
    monkeypatch.setitem(cast("dict[str, object]", STAGE_KINDS), "fake", lacking)
    for stage in ({}, {"python": sys.executable}):
        problem = problem_of(recipe(stage))
        assert str(problem) == f"{sys.executable} lacks no-such-package, nor-this"
        assert problem.hint == f"install the engines' packages: {install_command(sys.executable)}"


def _distribution(folder: Path, name: str, code: str, requires: str = "") -> None:
    (folder / f"{name}.py").write_text(code)
    made = folder / f"{name}-1.0.dist-info"
    made.mkdir(parents=True)
    more = f"Requires-Dist: {requires}\n" if requires else ""
    (made / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{more}")


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import no_such_part", "has its_own_library and cannot import it: ModuleNotFoundError: No module named"),
        ("", ""),
    ],
)
def test_a_package_that_cannot_be_imported_is_named_by_its_cause_and_one_that_can_is_none(
    code: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _distribution(tmp_path, "its_own_library", code, "no-such-part>=2")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    needs = replace(STAGE_KINDS["fake"], needs=lambda _stage: ("msgspec", "its_own_library"))
    monkeypatch.setitem(cast("dict[str, object]", STAGE_KINDS), "fake", needs)
    for stage in ({}, {"python": sys.executable}):
        if not words:
            check_interpreters(recipe(stage), ["s0"])
            continue
        problem = problem_of(recipe(stage))
        assert words in str(problem)
        assert "it lacks no-such-part (for its_own_library)" in str(problem)


def test_an_unusable_interpreter_gets_no_install_command(tmp_path: Path) -> None:
    lacks = interpreter(tmp_path, '{"python": [3, 12], "found": {"msgspec": null}}')
    hints = problem_of(recipe({"python": "/nowhere/python"}, {"python": lacks})).hint.splitlines()
    assert hints == [CHOOSE_ANOTHER, f"install the engines' packages: {install_command(lacks)}"]


def test_stages_that_will_not_run_are_not_asked_about() -> None:
    found = recipe({}, {"python": "/nowhere/python"})
    check_interpreters(found, ["s0"])
    assert "no such file" in str(problem_of(found, ["s1"]))


def test_problems_of_all_interpreters_are_reported_at_once(tmp_path: Path) -> None:
    found = recipe({"python": "/nowhere/python"}, {"python": "/nor/there"}, {"python": interpreter(tmp_path, "x")})
    text = str(problem_of(found))
    assert "/nowhere/python" in text
    assert "/nor/there" in text
    assert "could not query" in text


@pytest.mark.parametrize(
    ("answer", "status", "says"),
    [
        ("", 0, "could not query"),
        ("not json", 0, "could not query"),
        ("[]", 0, "could not query"),
        ("7", 0, "could not query"),
        ("{}", 0, "could not query"),
        ('{"python": 3, "found": {}}', 0, "could not query"),
        ('{"python": [3, 11], "found": 7}', 0, "could not query"),
        ("{}", 1, "it ended with status 1"),
        ('{"python": [3, 9], "found": {}}', 0, "is Python 3.9; allowed: 3.11 or newer"),
        ('{"python": [3, 12], "found": {"msgspec": null, "pydantic": "2.14"}}', 0, "lacks msgspec"),
        (
            '{"python": [3, 12], "found": {"transformers": "5.2.0"}}',
            0,
            "has transformers 5.2.0; the engines are tested with",
        ),
        ('{"python": [3, 12], "found": {"trl": "2.0"}}', 0, "has trl 2.0"),
    ],
)
def test_an_unusable_interpreter_is_refused_with_the_reason(
    tmp_path: Path, answer: str, status: int, says: str
) -> None:
    text = str(problem_of(recipe({"python": interpreter(tmp_path, answer, status)})))
    assert says in text
    assert "importlib" not in text, "the question is no part of the answer"


def test_output_of_an_interpreter_before_its_answer_is_ignored(tmp_path: Path) -> None:
    answer = 'Welcome!\n{"python": [3, 13], "found": {"msgspec": "0.22", "pydantic": "2.14"}}\n'
    check_interpreters(recipe({"python": interpreter(tmp_path, answer)}), ["s0"])


def test_an_interpreter_that_does_not_answer_times_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "python"
    path.write_text(f"#!{sys.executable}\nimport time\ntime.sleep(600)\n")
    path.chmod(0o755)
    monkeypatch.setattr(preflight, "ASK_TIMEOUT_S", 0.5)
    assert "no answer within 0.50s" in str(problem_of(recipe({"python": str(path)})))


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_file_that_cannot_be_executed_is_not_an_interpreter(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "python"
    path.mkdir() if kind == "folder" else path.write_text("not a program")
    assert "could not query" in str(problem_of(recipe({"python": str(path)})))


def test_the_versions_that_are_tested_are_those_installed_here() -> None:
    """A stage with another interpreter must have the versions that the tests ran with."""
    for name, tested in TESTED["hf"].items():
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            pytest.skip("needs the train extra")
        assert found.startswith(tested + "."), name


def test_packages_for_the_comparison_of_a_merge_or_an_export_are_required_too() -> None:
    merge = {"name": "m", "kind": "merge", "model": "b", "adapter": "a"}
    assert "peft" in needs_of(STAGE_TYPES["merge"].model_validate(merge))
    bare = needs_of(STAGE_TYPES["merge"].model_validate({**merge, "parity_positions": 0}))
    assert not {"peft", "transformers", "bitsandbytes"} & set(bare)
    assert "bitsandbytes" in needs_of(STAGE_TYPES["merge"].model_validate({**merge, "base_rounding": "nf4"}))
    export = {"name": "g", "kind": "export", "model": "b"}
    assert "peft" not in needs_of(STAGE_TYPES["export"].model_validate(export))
    assert "peft" in needs_of(STAGE_TYPES["export"].model_validate({**export, "adapter": "a"}))


def test_a_command_names_the_packages_that_its_interpreter_lacks() -> None:
    with pytest.raises(OperatorError, match=r"cockpit parity needs no-such-package; .* lacks it") as caught:
        check_here(["msgspec", "no-such-package"], "cockpit parity")
    assert caught.value.hint == f"install them: {install_command(sys.executable)}"


TUNED = {"kind": "finetune", "model": "/m", "data": "/d", "backend": "unsloth"}
MINOR = {name: f"{version}.9" for name, version in TESTED["unsloth"].items()}


def with_versions(folder: Path, **versions: str | None) -> str:
    """An interpreter that has what Unsloth needs, in these versions."""
    names = row_of(recipe(TUNED).stage[0]).needs(recipe(TUNED).stage[0])
    found = {**dict.fromkeys(names, "1.0"), **MINOR, **versions}
    return interpreter(folder, json.dumps({"python": [3, 11], "found": found}))


def test_each_backend_has_versions_of_its_own(tmp_path: Path) -> None:
    check_interpreters(recipe({**TUNED, "python": with_versions(tmp_path)}), ["s0"])
    problem = problem_of(recipe({**TUNED, "backend": "hf", "python": with_versions(tmp_path)}))
    assert "has transformers 5.17.9; the engines are tested with 5.23.*" in str(problem)
    problem = problem_of(recipe({**TUNED, "python": with_versions(tmp_path, transformers="5.23.0", unsloth_zoo=None)}))
    assert "lacks unsloth_zoo" in str(problem)
    assert "has transformers 5.23.0; the engines are tested with 5.17.*" in str(problem)
    assert "-m pip install" in problem.hint
    assert "'transformers==5.17.*'" in problem.hint
    assert 'set backend = "hf"' in problem.hint


def test_cockpits_own_interpreter_is_not_one_for_unsloth() -> None:
    """It has another transformers, whether or not somebody installed Unsloth into it."""
    assert "the engines are tested with 5.17.*" in str(problem_of(recipe(TUNED)))
