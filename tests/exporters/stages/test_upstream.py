"""llama.cpp's own converter from the operator's checkout. The script in the tests has its command line and uses
Cockpit's writer."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from engines.context import StageFailedError
from engines.events import Warned
from engines.llama.gguf_file import read_gguf
from exporters.stages.upstream import find_converter
from recipes.problems import OperatorError
from recipes.stages.export import ExportStage
from tests.exporters.exporting import export, parity
from tests.exporters.small_models import build_model, copy_folder, edit_json

pytestmark = pytest.mark.torch
ROOT = Path(__file__).resolve().parents[3]
SCRIPT = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from exporters.gguf.write import read_model, write_gguf
folder, outtype, outfile = sys.argv[1], sys.argv[3].upper(), sys.argv[5]
assert (sys.argv[2], sys.argv[4]) == ("--outtype", "--outfile")
fault = os.environ.get("SCRIPT_FAULT")
if fault == "fails":
    sys.exit("Model GemmaForCausalLM is not supported")
model = read_model(Path(folder))
write_gguf(model, model.plan(outtype), Path(outfile), None)
if fault == "tears":
    os.truncate(outfile, 5000)
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "llama.cpp"
    (folder / ".git" / "refs" / "heads").mkdir(parents=True)
    (folder / ".git" / "HEAD").write_text("ref: refs/heads/master\n")
    (folder / ".git" / "refs" / "heads" / "master").write_text("0c1e57098" + "0" * 31 + "\n")
    (folder / "convert_hf_to_gguf.py").write_text(SCRIPT)
    return folder


def upstream(tmp_path: Path, base: Path, checkout: Path, *types: str, **fields: Any) -> Any:
    tmp_path.mkdir(exist_ok=True)
    return export(tmp_path, base, *types, converter="upstream", llama_cpp=str(checkout), **fields)[0]


def test_files_of_a_checkout_are_compared_with_the_model_and_recorded(
    base: Path, checkout: Path, tmp_path: Path
) -> None:
    ctx = upstream(tmp_path / "run", base, checkout, "F16", "Q8_0", "BF16", "Q4_K_M")
    record = parity(ctx)
    assert record["passed"]
    assert [file["file_type"] for file in record["files"]] == ["F16", "Q8_0", "BF16", "Q4_K_M"]
    assert record["converter"]["commit"] == "0c1e57098" + "0" * 31
    assert len(record["converter"]["sha256"]) == 64
    assert record["audit"] is None
    assert any("not audited" in event.message for event in ctx.events() if isinstance(event, Warned))
    own = export(tmp_path, base, "Q4_K_M", parity_positions=0)[0]
    made, ours = (read_gguf(folder / "run-Q4_K_M.gguf") for folder in (ctx.out, own.out))
    for name, tensor in ours.tensors.items():
        other = made.tensors[name]
        assert made.read(other, 0, other.rows) == ours.read(tensor, 0, tensor.rows), name
    assert not list(ctx.work.glob("*.gguf"))


@pytest.mark.parametrize(
    ("fault", "message"),
    [("fails", "GemmaForCausalLM is not supported"), ("tears", "did not write a complete file")],
)
def test_a_script_that_fails_leaves_no_file(
    fault: str, message: str, base: Path, checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCRIPT_FAULT", fault)
    with pytest.raises(StageFailedError, match=message):
        upstream(tmp_path / "run", base, checkout, "F16")
    assert not list((tmp_path / "run").rglob("*.gguf"))


def test_a_wrong_model_from_a_checkout_is_caught_by_the_comparison(
    base: Path, checkout: Path, tmp_path: Path, tokenizer: Path
) -> None:
    other = build_model(tmp_path / "other", tokenizer, rope_parameters={"rope_type": "default", "rope_theta": 500.0})
    (checkout / "convert_hf_to_gguf.py").write_text(
        SCRIPT.replace("folder, outtype", "_, outtype")
        .replace("model = read_model(Path(folder))", f"model = read_model(Path({str(other)!r}))")
        .replace("sys.argv[1], sys.argv[3]", "sys.argv[1], sys.argv[3]")
    )
    with pytest.raises(StageFailedError, match="F16: mean KL is"):
        upstream(tmp_path / "run", base, checkout, "F16")


def test_where_the_checkout_is_looked_for(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COCKPIT_LLAMA_CPP", raising=False)
    with pytest.raises(OperatorError, match=r"needs a checkout of llama\.cpp; neither llama_cpp nor COCKPIT_LLAMA_CPP"):
        find_converter(None)
    monkeypatch.setenv("COCKPIT_LLAMA_CPP", str(checkout))
    assert find_converter(None).script == checkout / "convert_hf_to_gguf.py"
    with pytest.raises(OperatorError, match=r"llama_cpp — no convert_hf_to_gguf\.py in"):
        find_converter(str(tmp_path))
    monkeypatch.setenv("COCKPIT_LLAMA_CPP_PYTHON", "no-such-python")
    with pytest.raises(OperatorError, match="COCKPIT_LLAMA_CPP_PYTHON — program not found"):
        find_converter(None)


def test_the_script_runs_with_the_python_that_is_named(
    base: Path, checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "their-python"
    python.write_text(f'#!/bin/sh\ntouch "{tmp_path}/used"\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    monkeypatch.setenv("COCKPIT_LLAMA_CPP_PYTHON", str(python))
    upstream(tmp_path / "run", base, checkout, "F16", parity_positions=0)
    assert (tmp_path / "used").exists()


@pytest.mark.parametrize(
    "fields",
    [
        {"adapter": "a"},
        {"adapters": ["a"]},
        {"imatrix": "always"},
        {"i2s": "x86-128"},
        {"file_types": ["TQ2_0", "F16"]},
        {"file_types": ["IQ2_XS"]},
    ],
)
def test_fields_that_need_cockpits_converter_are_refused_at_check_time(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="converter — upstream cannot be combined with"):
        ExportStage.model_validate({"name": "x", "kind": "export", "model": "m", "converter": "upstream", **fields})


def test_types_of_an_unknown_family_need_the_operators_program_and_are_refused_before_writing(
    base: Path, checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    copy_folder(base, tmp_path / "model")
    edit_json(tmp_path / "model" / "config.json", architectures=["PlatypusForCausalLM"])
    with pytest.raises(
        OperatorError, match="got Q4_K_M; Cockpit does not know the tensor types of PlatypusForCausalLM"
    ):
        upstream(tmp_path / "run", tmp_path / "model", checkout, "F16", "Q4_K_M")
    assert not list((tmp_path / "run").rglob("*.gguf"))
