"""Models and checkpoints of others cannot run code: pickles, code beside the weights, chat templates."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from engines.artifacts.manifest import manifest_sha256, write_manifest
from engines.context import ResumePoint
from engines.labels.row import RefusedRow
from engines.labels.vocabulary import view_of
from engines.run_dir.paths import RunDir
from recipes.problems import OperatorError
from tests.engines.labels.labelling import outcomes
from tests.engines.training.attempts import context, run_stage
from tests.engines.training.tiny import CHATML, FINETUNE, PRETRAIN

pytestmark = pytest.mark.torch


class Evil:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, canary: Path) -> None:
        self._canary = canary

    def __reduce__(self) -> tuple[Any, tuple[str, int]]:
        return os.mkdir, (str(self._canary), 0o700)


def evil_bytes(canary: Path) -> bytes:
    return pickle.dumps(Evil(canary))


def evil_archive(path: Path, canary: Path) -> None:
    """A file as torch.save writes it, whose pickle makes a file."""
    import torch

    torch.save({"x": Evil(canary)}, path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tokens: Path) -> Path:
    """A folder with a run that has a checkpoint at step 3."""
    folder = tmp_path_factory.mktemp("trained")
    run_stage(context(folder, {**PRETRAIN, "max_steps": 4}, {"data": tokens}))
    return folder


def point_in(folder: Path) -> ResumePoint:
    """The checkpoint of step 3, as its manifest is now."""
    path = RunDir(folder / "run").checkpoint("base", 1, 3)
    return ResumePoint(1, 3, path, manifest_sha256(path))


@pytest.fixture
def copied(tmp_path: Path, model: Path) -> Path:
    """A model folder that a test may change; it is not what its manifest says."""
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    (folder / "manifest.json").unlink()
    return folder


def test_the_pickle_of_these_tests_would_run_code(tmp_path: Path) -> None:
    import torch

    evil_archive(tmp_path / "f", tmp_path / "canary")
    torch.load(tmp_path / "f", weights_only=False)
    assert (tmp_path / "canary").is_dir()


@pytest.mark.parametrize("archive", [True, False], ids=["torch.save", "bare pickle"])
@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_pickle_in_a_checkpoint_is_refused_and_runs_nothing(
    tmp_path: Path, tokens: Path, trained: Path, name: str, archive: bool
) -> None:
    """The checkpoint's manifest agrees with the pickle: whoever could write the one could write the other."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    path = point_in(tmp_path).path
    canary = tmp_path / "canary"
    assert (path / name).is_file()
    if archive:
        evil_archive(path / name, canary)
    else:
        (path / name).write_bytes(evil_bytes(canary))
    known = json.loads((path / "manifest.json").read_text())
    write_manifest(path, **{key: value for key, value in known.items() if key not in {"format", "files"}})
    with pytest.raises(Exception, match=r"(?i)weights_only|pickle|invalid|unpickl"):
        run_stage(context(tmp_path, PRETRAIN, {"data": tokens}, attempt=2, resume=point_in(tmp_path)))
    assert not canary.exists()


def test_a_pickle_beside_a_checkpoint_is_not_read(tmp_path: Path, tokens: Path, trained: Path) -> None:
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    point = point_in(tmp_path)
    for name in ("training_args.bin", "trainer_state.bin", "pytorch_model.bin"):
        evil_archive(point.path / name, tmp_path / "canary")
    assert run_stage(context(tmp_path, PRETRAIN, {"data": tokens}, attempt=2, resume=point)) is not None
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("archive", [True, False], ids=["torch.save", "bare pickle"])
def test_a_base_model_whose_weights_are_a_pickle_runs_nothing(
    tmp_path: Path, copied: Path, messages: Path, archive: bool
) -> None:
    from engines.evaluate.model import load_model

    (copied / "model.safetensors").unlink()
    if archive:
        evil_archive(copied / "pytorch_model.bin", tmp_path / "canary")
    else:
        (copied / "pytorch_model.bin").write_bytes(evil_bytes(tmp_path / "canary"))
    with pytest.raises(Exception, match=r"(?i)weights|pickle|load"):
        run_stage(context(tmp_path / "run", FINETUNE, {"model": copied, "data": messages}))
    with pytest.raises(Exception, match=r"(?i)weights|pickle|load"):
        load_model(copied, "model")
    assert not (tmp_path / "canary").exists()


EVIL_CODE = "import os\nos.mkdir({canary!r})\nclass Evil: pass\n"


@pytest.mark.parametrize("model_type", ["llama", "evil"])
def test_code_that_lies_beside_a_model_is_not_imported(
    tmp_path: Path, copied: Path, messages: Path, model_type: str
) -> None:
    from engines.evaluate.model import load_model

    canary = tmp_path / "canary"
    for name in (
        "modeling_evil.py",
        "configuration_evil.py",
        "tokenization_evil.py",
        "conftest.py",
        "sitecustomize.py",
    ):
        (copied / name).write_text(EVIL_CODE.format(canary=str(canary)))
    code = {
        "AutoConfig": "configuration_evil.Evil",
        "AutoModelForCausalLM": "modeling_evil.Evil",
        "AutoTokenizer": ["tokenization_evil.Evil", "tokenization_evil.Evil"],
    }
    for file in ("config.json", "tokenizer_config.json"):
        settings = json.loads((copied / file).read_text())
        settings["auto_map"] = code
        if file == "config.json":
            settings["model_type"] = model_type
        (copied / file).write_text(json.dumps(settings))
    if model_type == "evil":
        with pytest.raises(OperatorError, match="cannot load a model"):
            run_stage(context(tmp_path / "run", FINETUNE, {"model": copied, "data": messages}))
        with pytest.raises(OperatorError, match="cannot load a model"):
            load_model(copied, "model")
    else:
        assert run_stage(context(tmp_path / "run", {**FINETUNE, "max_steps": 1}, {"model": copied, "data": messages}))
        load_model(copied, "model")
    assert not canary.exists()


ESCAPES = [
    "{{ messages.__class__.__mro__[1].__subclasses__() }}",
    "{{ ''.__class__.__base__.__subclasses__()[0].__init__.__globals__ }}",
    "{{ cycler.__init__.__globals__.os.mkdir(CANARY) }}",
    "{{ self.__init__.__globals__.__builtins__.__import__('os').mkdir(CANARY) }}",
    "{{ raise_exception.__globals__['__builtins__']['__import__']('os').mkdir(CANARY) }}",
    "{{ lipsum.__globals__['os'].mkdir(CANARY) }}",
    "{% set x = messages.append({'role': 'user', 'content': 'y'}) %}",
    "{% include '/etc/passwd' %}",
    "{% import '/etc/passwd' as x %}",
    "{% for i in range(10 ** 9) %}{{ i }}{% endfor %}",
]


@pytest.mark.parametrize("escape", ESCAPES)
@pytest.mark.parametrize("marked", [True, False], ids=["generation marks", "no marks"])
def test_a_chat_template_reaches_nothing_outside_its_messages(
    tmp_path: Path, model: Path, escape: str, marked: bool
) -> None:
    from transformers import AutoTokenizer

    canary = tmp_path / "canary"
    tokenizer = AutoTokenizer.from_pretrained(str(model))
    plain = CHATML if marked else CHATML.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    tokenizer.chat_template = escape.replace("CANARY", repr(str(canary))) + plain
    rows = [[{"role": "user", "content": "f?"}, {"role": "assistant", "content": "x"}]]
    found = outcomes(rows, view_of(tokenizer), 48)[0]
    assert isinstance(found, RefusedRow)
    assert re.search(r"unsafe|undefined|no loader|access|not safe|Undefined|Range too big", found.reason)
    assert not canary.exists()
    assert "root:" not in repr(rows)


@pytest.mark.parametrize("damage", ["pickle", "cut", "config", "tokenizer"])
def test_a_damaged_model_is_refused_in_one_line_wherever_it_is_loaded(tmp_path: Path, model: Path, damage: str) -> None:
    from engines.evaluate.model import load_model
    from engines.finetune.model import load_base

    copied = shutil.copytree(model, tmp_path / "copied")
    weights = copied / "model.safetensors"
    if damage == "pickle":
        weights.unlink()
        (copied / "pytorch_model.bin").write_bytes(b"cos\nmkdir\n(S'" + str(tmp_path / "ran").encode() + b"'\ntR.")
    elif damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif damage == "config":
        settings = json.loads((copied / "config.json").read_text())
        (copied / "config.json").write_text(json.dumps({**settings, "hidden_size": [1]}))
    else:
        (copied / "tokenizer.json").write_text('{"version": "1.0", "model": {"type": "BPE", "vocab": 1}}')
    for load in (lambda: load_model(copied, "model"), lambda: load_base(copied)):
        with pytest.raises(OperatorError, match=r"cannot load a (model|tokenizer) from") as caught:
            load()
        assert "\n" not in caught.value.message
        assert "weights_only" not in caught.value.message, "torch's way out would run the code in the file"
        assert caught.value.hint
    assert not (tmp_path / "ran").exists()
