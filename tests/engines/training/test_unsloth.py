"""Training with Unsloth: what is asked of it, what is refused, and that the training around it is the same.

Unsloth itself needs other versions than this interpreter has. `tests/engines/training/test_unsloth_itself.py` trains
with it where an interpreter is named; here a package of its name hands out transformers' and PEFT's own model, as
Unsloth does on the CPU.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from engines.context import StageResult
from engines.events.attempts import Phase
from engines.events.results import Evaluated
from engines.events.steps import Step
from engines.finetune import unsloth_start
from recipes.problems import OperatorError
from recipes.stages.dpo import DpoStage
from recipes.stages.finetune import FinetuneStage
from recipes.stages.kind import TESTED
from recipes.stages.registry import row_of
from tests.engines.training.attempts import context, of_kind, resume_point, run_stage, trajectory
from tests.engines.training.tiny import FINETUNE

pytestmark = pytest.mark.torch
STAGE = {**FINETUNE, "max_steps": 4, "save_steps": 2, "eval_steps": 4, "model": "m", "data": "d"}
UNSLOTH = {**STAGE, "backend": "unsloth"}
FOUR_BITS = {"load_in_4bit": True, "bnb_4bit_use_double_quant": True}


class Package(ModuleType):
    """A module named unsloth: `asked` has the arguments of its functions."""

    def __init__(self, device: str) -> None:
        super().__init__("unsloth")
        self.DEVICE_TYPE = device
        self.asked: list[dict[str, Any]] = []
        self.FastLanguageModel = self

    def from_pretrained(self, **given: Any) -> Any:
        from transformers import AutoModelForCausalLM

        self.asked.append(given)
        model = AutoModelForCausalLM.from_pretrained(given["model_name"], dtype=given["dtype"])
        model.config.pad_token_id = 0  # as Unsloth does where a model has none
        return model, None

    def get_peft_model(self, model: Any, **given: Any) -> Any:
        import torch
        from peft import LoraConfig, get_peft_model

        self.asked.append(dict(given))
        torch.manual_seed(given.pop("random_state"))
        del given["use_gradient_checkpointing"]
        return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **given))


BOTH = pytest.mark.parametrize("package", ["cpu", "cuda"], indirect=True)


@pytest.fixture
def package(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Package:
    found = Package(getattr(request, "param", "cuda"))
    monkeypatch.setitem(sys.modules, "unsloth", found)
    return found


def _settings(folder: Path) -> dict[str, Any]:
    """The adapter's settings; PEFT writes the layers of a set in any order."""
    found: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text())
    return found | {"target_modules": sorted(found["target_modules"])}


@BOTH
def test_losses_weights_and_files_are_those_of_hf(
    tmp_path: Path, model: Path, messages: Path, package: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On an accelerator the loss of a step is the model's own, so sums differ in their last digits."""
    inputs = {"model": model, "data": messages}
    one = context(tmp_path / "hf", STAGE, inputs)
    assert run_stage(one) is not None
    two = context(tmp_path / "unsloth", UNSLOTH, inputs)
    if package.DEVICE_TYPE == "cuda":
        from engines.forward.label_loss import LabelLoss

        monkeypatch.setattr(LabelLoss, "total", None)
    made = run_stage(two)
    assert isinstance(made, StageResult)
    if package.DEVICE_TYPE == "cpu":
        assert trajectory(two, 1) == trajectory(one, 1)
    for mine, theirs in zip(of_kind(two, Step), of_kind(one, Step), strict=True):
        assert mine.loss == pytest.approx(theirs.loss, rel=1e-5)
        assert mine.grad_norm == pytest.approx(theirs.grad_norm, rel=1e-4)
    assert of_kind(two, Evaluated)[0].loss == pytest.approx(of_kind(one, Evaluated)[0].loss, rel=1e-5)
    assert sorted(path.name for path in two.out.iterdir()) == sorted(path.name for path in one.out.iterdir())
    assert _settings(two.out) == _settings(one.out)
    said = [event.name for event in of_kind(two, Phase) if "products" in event.name]
    assert said[0].startswith("unsloth: ")
    assert "rows in one sequence" in said[0]


def test_a_resume_with_unsloth_is_exact(tmp_path: Path, model: Path, messages: Path, package: Package) -> None:
    inputs = {"model": model, "data": messages}
    whole = context(tmp_path, UNSLOTH, inputs)
    run_stage(whole)
    later = context(tmp_path, UNSLOTH, inputs, attempt=2, resume=resume_point(whole, 2))
    run_stage(later)
    assert trajectory(later, 2) == trajectory(whole, 1, after=2) != []


def test_what_a_stage_says_reaches_unsloth(tmp_path: Path, model: Path, messages: Path, package: Package) -> None:
    import torch

    fields = {"use_dora": True, "gradient_checkpointing": True, "seed": 7, "target_modules": ["all-linear"]}
    run_stage(context(tmp_path, {**UNSLOTH, **fields, "max_steps": 1}, {"model": model, "data": messages}))
    loaded, adapted = package.asked
    assert loaded == {
        "model_name": str(model),
        "max_seq_length": UNSLOTH["max_length"],
        "dtype": torch.float32,
        "load_in_4bit": False,
        "full_finetuning": False,
        "use_gradient_checkpointing": "unsloth",
        "random_state": 7,
        "fix_tokenizer": False,
        "local_files_only": True,
    }
    assert (adapted["r"], adapted["lora_alpha"], adapted["use_dora"], adapted["random_state"]) == (4, 8, True, 7)
    assert (adapted["target_modules"], adapted["use_gradient_checkpointing"]) == ("all-linear", "unsloth")


def test_all_weights_are_trained_in_float32_and_the_output_has_the_base_s_settings(
    tmp_path: Path, model: Path, messages: Path, package: Package
) -> None:
    fields = {key: value for key, value in UNSLOTH.items() if key not in ("r", "lora_alpha", "lora_dropout")}
    ctx = context(tmp_path, {**fields, "output": "model", "max_steps": 1}, {"model": model, "data": messages})
    assert run_stage(ctx) is not None
    assert package.asked[0]["full_finetuning"] is True
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (model, ctx.out))
    assert after.get("pad_token_id") == before.get("pad_token_id")


def test_more_positions_than_the_model_has_are_refused(
    tmp_path: Path, model: Path, messages: Path, package: Package
) -> None:
    positions = json.loads((model / "config.json").read_text())["max_position_embeddings"]
    ctx = context(tmp_path, {**UNSLOTH, "max_length": positions + 1}, {"model": model, "data": messages})
    with pytest.raises(OperatorError, match=f"the model has {positions} positions, and Unsloth would stretch them"):
        run_stage(ctx)


def test_a_base_that_should_be_in_4_bits_and_is_not_is_refused(
    tmp_path: Path, model: Path, messages: Path, package: Package
) -> None:
    """Unsloth prints a line and loads 16 bits where bitsandbytes fails; the package here does so always."""
    with pytest.raises(OperatorError, match="load_in_4bit — bitsandbytes cannot quantize"):
        run_stage(context(tmp_path, {**UNSLOTH, **FOUR_BITS}, {"model": model, "data": messages}))


@BOTH
def test_tokens_that_a_template_adds_are_refused_on_an_accelerator_only(
    tmp_path: Path, model: Path, messages: Path, package: Package
) -> None:
    ctx = context(tmp_path, {**UNSLOTH, "chat_template": "gemma", "max_steps": 1}, {"model": model, "data": messages})
    if package.DEVICE_TYPE == "cpu":
        assert run_stage(ctx) is not None
    else:
        with pytest.raises(OperatorError, match="chat_template — gemma adds tokens"):
            run_stage(ctx)


def test_an_error_of_unsloth_is_one_line(
    tmp_path: Path, model: Path, messages: Path, package: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_given: Any) -> Any:
        raise NotImplementedError("Unsloth: this architecture is not supported!\nMore.")

    monkeypatch.setattr(package, "from_pretrained", refuse)
    with pytest.raises(
        OperatorError, match=r"backend — Unsloth cannot load .*: Unsloth: this architecture is"
    ) as caught:
        run_stage(context(tmp_path, UNSLOTH, {"model": model, "data": messages}))
    assert "\n" not in caught.value.message
    assert caught.value.hint == 'set backend = "hf"'


def test_an_optimizer_that_the_libraries_replace_is_refused(
    tmp_path: Path, model: Path, messages: Path, package: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unsloth on the CPU changes the arguments as they are made."""
    from transformers import TrainingArguments

    made = TrainingArguments.__post_init__

    def other(self: Any) -> None:
        made(self)
        self.optim = "adamw_torch_fused"

    monkeypatch.setattr(TrainingArguments, "__post_init__", other)
    ctx = context(tmp_path, {**UNSLOTH, "optim": "adamw_torch"}, {"model": model, "data": messages})
    with pytest.raises(OperatorError, match="optim — backend = unsloth replaces adamw_torch by adamw_torch_fused"):
        run_stage(ctx)


# ---- its start


def environment(folder: Path, body: str, **versions: str) -> None:
    """Distributions of these versions, and a package named unsloth."""
    for name, version in {**{key: f"{one}.3" for key, one in TESTED["unsloth"].items()}, **versions}.items():
        info = folder / f"{name}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.4\nName: {name}\nVersion: {version}\n")
    (folder / "unsloth").mkdir()
    (folder / "unsloth" / "__init__.py").write_text(body)


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(sys, "modules", {name: one for name, one in sys.modules.items() if name != "unsloth"})
    for name in ("UNSLOTH_COMPILE_LOCATION", "UNSLOTH_DISABLE_STATISTICS"):
        monkeypatch.setenv(name, "")  # restored afterwards

    def start(body: str = "", **versions: str) -> None:
        environment(tmp_path / "site", body, **versions)
        monkeypatch.syspath_prepend(str(tmp_path / "site"))
        unsloth_start.start(context(tmp_path, UNSLOTH, {}))

    return start


def test_an_engine_with_other_versions_says_which_in_one_line(started: Any) -> None:
    with pytest.raises(OperatorError, match=r"has transformers 5\.23\.0; backend = unsloth is tested with 5\.17") as e:
        started(transformers="5.23.0")
    assert "\n" not in e.value.message
    assert 'set backend = "hf"' in e.value.hint


def test_an_engine_in_which_unsloth_does_not_start_gives_its_reason_in_one_line(started: Any) -> None:
    with pytest.raises(OperatorError, match=r"Unsloth 2026\.10\.3 does not start in .*NotImplementedError: a GPU") as e:
        started("raise NotImplementedError('a GPU is needed\\nand more')")
    assert "\n" not in e.value.message


def test_unsloth_writes_into_the_attempt_and_asks_no_model_hub(started: Any, tmp_path: Path) -> None:
    started("import os; seen = dict(os.environ)")
    seen = sys.modules["unsloth"].seen
    assert Path(seen["UNSLOTH_COMPILE_LOCATION"]).is_relative_to(tmp_path / "run")
    assert seen["UNSLOTH_DISABLE_STATISTICS"] == "1"


def test_the_start_belongs_to_stages_with_this_backend() -> None:
    names = {"name": "a", "kind": "finetune", "model": "m", "data": "d"}
    assert row_of(stage := FinetuneStage.model_validate(names)).starts_with(stage) == ""
    with_it = FinetuneStage.model_validate({**names, "backend": "unsloth"})
    assert row_of(with_it).starts_with(with_it) == unsloth_start.__name__


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"load_in_4bit": True}, "bnb_4bit_use_double_quant"),
        ({**FOUR_BITS, "bnb_4bit_quant_type": "fp4"}, "bnb_4bit_quant_type"),
        ({**FOUR_BITS, "llm_int8_skip_modules": ["x"]}, "llm_int8_skip_modules"),
        ({"modules_to_save": ["embed_tokens", "gate"]}, "modules_to_save"),
    ],
)  # fmt: skip
def test_values_that_unsloth_would_replace_are_refused(fields: dict[str, Any], field: str) -> None:
    names = {"name": "a", "kind": "finetune", "model": "m", "data": "d"}
    FinetuneStage.model_validate({**names, **fields})
    with pytest.raises(ValueError, match=f"{field} — backend = unsloth has its own"):
        FinetuneStage.model_validate({**names, **fields, "backend": "unsloth"})


def test_pairs_are_trained_without_unsloth() -> None:
    with pytest.raises(ValueError, match="backend — pairs are trained with TRL's own DPOTrainer"):
        DpoStage.model_validate({"name": "a", "kind": "dpo", "model": "m", "data": "d", "backend": "unsloth"})
