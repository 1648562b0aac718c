"""llama.cpp's own converter from the operator's checkout. The script in the tests has its command line and uses
Cockpit's writer."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from engines.context import StageFailedError
from engines.llama.gguf_file import read_gguf
from exporters.gguf.write import read_model, write_gguf
from exporters.upstream.audit import Derived, moves_rows
from exporters.upstream.script import find_converter, options_for
from recipes.problems import OperatorError
from recipes.stages.export import ExportStage
from tests.exporters.exporting import export, parity
from tests.exporters.small_models import build_adapter, build_model

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
if fault == "spoils":
    from engines.llama.gguf_file import read_gguf
    tensor = read_gguf(Path(outfile)).tensors["blk.1.ffn_up.weight"]
    with open(outfile, "r+b") as file:
        file.seek(tensor.start + 3 * tensor.columns * tensor.kind.block_bytes)
        file.write(bytes(8))
"""
ADAPTER_SCRIPT = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from exporters.gguf.adapter import plan_adapter, write_adapter
from exporters.gguf.write import read_model
from exporters.lora.adapter import read_adapter
assert (sys.argv[1], sys.argv[4], sys.argv[6]) == ("--base", "--outtype", "--outfile")
model = read_model(Path(sys.argv[2]))
write_adapter(model, plan_adapter(model, read_adapter(Path(sys.argv[3]))), Path(sys.argv[7]), sys.argv[5].upper())
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "llama.cpp"
    (folder / ".git" / "refs" / "heads").mkdir(parents=True)
    (folder / ".git" / "HEAD").write_text("ref: refs/heads/master\n")
    (folder / ".git" / "refs" / "heads" / "master").write_text("0c1e57098" + "0" * 31 + "\n")
    (folder / "convert_hf_to_gguf.py").write_text(SCRIPT)
    (folder / "convert_lora_to_gguf.py").write_text(ADAPTER_SCRIPT)
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
    for file in record["files"]:
        proof = file["bytes"]
        assert (proof["passed"], proof["equal"], proof["by_value"]) == (True, proof["tensors"], 0), file["file"]
    own = export(tmp_path, base, "Q4_K_M", parity_positions=0)[0]
    made, ours = (read_gguf(folder / "run-Q4_K_M.gguf") for folder in (ctx.out, own.out))
    for name, tensor in ours.tensors.items():
        other = made.tensors[name]
        assert made.read(other, 0, other.rows) == ours.read(tensor, 0, tensor.rows), name
    assert not list(ctx.work.glob("*.gguf"))


@pytest.mark.thorough
def test_adapters_and_types_with_an_importance_matrix_are_written_too(
    base: Path, adapter: Path, checkout: Path, tmp_path: Path
) -> None:
    fields: dict[str, Any] = {"imatrix_tokens": 256, "parity_positions": 64, "max_length": 64}
    ctx = upstream(
        tmp_path / "run",
        base,
        checkout,
        "Q8_0",
        "IQ2_XS",
        adapters=[str(adapter)],
        inputs={"adapters[0]": adapter},
        **fields,
    )
    record = parity(ctx)
    assert [file["imatrix"] for file in record["files"]] == [False, True]
    assert record["files"][1]["bytes"]["equal"] == record["files"][1]["bytes"]["tensors"] == 20
    assert record["adapters"][0]["over"][0]["passed"]
    own = export(tmp_path, base, "IQ2_XS", **fields)[0]
    made, ours = (read_gguf(folder / "run-IQ2_XS.gguf") for folder in (ctx.out, own.out))
    for name, tensor in ours.tensors.items():
        assert made.read(made.tensors[name], 0, tensor.rows) == ours.read(tensor, 0, tensor.rows), name


def test_an_adapter_is_merged_before_the_script_converts(
    base: Path, adapter: Path, checkout: Path, tmp_path: Path
) -> None:
    ctx = upstream(
        tmp_path / "run", base, checkout, "F16", adapter=str(adapter), inputs={"adapter": adapter}, parity_positions=64
    )
    assert parity(ctx)["files"][0]["bytes"]["passed"]
    assert parity(ctx)["adapter_over_base"]["passed"]
    own = export(tmp_path, base, "F16", adapter=str(adapter), inputs={"adapter": adapter}, parity_positions=0)[0]
    made, ours = (read_gguf(folder / "run-F16.gguf") for folder in (ctx.out, own.out))
    for name, tensor in ours.tensors.items():
        assert made.read(made.tensors[name], 0, tensor.rows) == ours.read(tensor, 0, tensor.rows), name


def test_a_scale_of_its_own_is_refused_for_llama_cpps_script(base: Path, checkout: Path, tmp_path: Path) -> None:
    patterned = build_adapter(tmp_path / "patterned", base, alpha_pattern={"v_proj": 3})
    with pytest.raises(OperatorError, match=r"v_proj has a scale of its own \(rank pattern, alpha"):
        upstream(tmp_path / "run", base, checkout, "F16", adapters=[str(patterned)], inputs={"adapters[0]": patterned})


def test_a_value_that_the_script_spoils_is_named(
    base: Path, checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCRIPT_FAULT", "spoils")
    with pytest.raises(StageFailedError, match=r"Q8_0.*blk\.1\.ffn_up\.weight: row 3 differs from .*up_proj"):
        upstream(tmp_path / "run", base, checkout, "Q8_0", parity_positions=0)


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
    with pytest.raises(StageFailedError, match=r"meaning: llama\.rope\.freq_base is 500.*behaviour: mean KL"):
        upstream(tmp_path / "run", base, checkout, "F16")


def test_a_model_without_drafting_layers_is_converted_without_them() -> None:
    assert options_for("Qwen3_5ForCausalLM", ["model.norm.weight"]) == ["--no-mtp"]
    assert options_for("Qwen3_5ForCausalLM", ["model.norm.weight", "mtp.fc.weight"]) == []
    assert options_for("Glm4ForCausalLM", ["model.norm.weight"]) == []


def test_rows_in_another_order_differ_from_other_rows(base: Path, tmp_path: Path) -> None:
    model = read_model(base)
    write_gguf(model, model.plan("F32"), tmp_path / "f.gguf", None)
    name, source = "blk.0.ffn_up.weight", "model.layers.0.mlp.up_proj.weight"
    tensor = read_gguf(tmp_path / "f.gguf").tensors[name]
    origin = Derived(name, source, (source,), model.weights, (tensor.rows, tensor.columns))
    data, width = bytearray((tmp_path / "f.gguf").read_bytes()), 4 * tensor.columns
    first, second = (slice(tensor.start + row * width, tensor.start + (row + 1) * width) for row in (3, 9))
    data[first], data[second] = data[second], data[first]
    (tmp_path / "f.gguf").write_bytes(data)
    assert moves_rows(read_gguf(tmp_path / "f.gguf"), origin)
    data[tensor.start] ^= 1
    (tmp_path / "f.gguf").write_bytes(data)
    assert not moves_rows(read_gguf(tmp_path / "f.gguf"), origin)


def test_where_the_checkout_is_looked_for(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COCKPIT_LLAMA_CPP", raising=False)
    with pytest.raises(OperatorError, match=r"neither llama_cpp nor COCKPIT_LLAMA_CPP names a folder") as caught:
        find_converter(None)
    assert "pip download --no-deps --no-binary :all: llama-cpp-python" in caught.value.hint
    monkeypatch.setenv("COCKPIT_LLAMA_CPP", str(checkout))
    assert find_converter(None).script == checkout / "convert_hf_to_gguf.py"
    with pytest.raises(OperatorError, match=r"llama_cpp — no convert_hf_to_gguf\.py in"):
        find_converter(str(tmp_path))
    unpacked = tmp_path / "llama_cpp_python-0.3.36" / "vendor"
    unpacked.mkdir(parents=True)
    checkout.rename(unpacked / "llama.cpp")
    script = unpacked / "llama.cpp" / "convert_hf_to_gguf.py"
    assert find_converter(str(unpacked.parent)).script == script
    assert find_converter(str(script)).script == script
    monkeypatch.setenv("COCKPIT_LLAMA_CPP", str(script))
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


def test_i2s_needs_cockpits_converter_and_is_refused_at_check_time() -> None:
    with pytest.raises(ValueError, match="converter — upstream cannot be combined with i2s"):
        ExportStage.model_validate(
            {"name": "x", "kind": "export", "model": "m", "converter": "upstream", "i2s": "x86-128"}
        )
