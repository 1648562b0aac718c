"""The operator's own `llama-quantize`: a program that speaks its command line, with our kernels inside, stands in for
it."""

from __future__ import annotations

import json
import os
import stat
import sys
from pathlib import Path
from typing import Any

import gguf
import pytest

from engines.context import StageFailedError
from engines.events.attempts import Phase
from engines.events.writers import Warned
from engines.llama.ggml_types import TYPES
from engines.llama.gguf_file import read_gguf
from exporters.gguf.write import read_model, write_gguf
from exporters.quantize.own_quantize import find_program
from exporters.quantize.quantize_file import quantize, read_job
from recipes.problems import OperatorError
from tests.exporters.exporting import export, parity
from tests.stage_context import TriedContext

pytestmark = pytest.mark.torch
ROOT = Path(__file__).resolve().parents[3]

PROGRAM = f"""#!{sys.executable}
import os, sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from engines.llama.quantizer import KernelQuantizer
from exporters.gguf.source import open_source, write_quantized
from exporters.gguf.importance import load_importance
from exporters.gguf.own_types import with_tensor_types
words = sys.argv[1:]
matrix, own = None, {{}}
if words[0] == "--imatrix":
    matrix, words = load_importance(Path(words[1])), words[2:]
if words[0] == "--tensor-type-file":
    pairs = [line.split("=") for line in Path(words[1]).read_text().split()]
    own, words = {{name.strip("^$").replace("\\\\", ""): kind for name, kind in pairs}}, words[2:]
source, target, file_type, threads = words
trial = Path(source).name.startswith("test")
print("version: 7.7 (build 42, commit abcdef)", flush=True)
if os.environ.get("OWN_FAILS") == file_type and not trial:
    sys.exit("no room on the moon")
model = open_source(Path(source))
with KernelQuantizer(int(threads)) as kernels, open(target, "wb") as file:
    plan = with_tensor_types(model.plan(file_type, importance=matrix is not None), own)
    write_quantized(model, plan, file, kernels, lambda n: None, matrix)
if os.environ.get("OWN_SPOILS") == ("trial" if trial else "file"):
    with open(target, "r+b") as file:
        file.seek(-600 if trial else 0, 2)
        file.write(b"spoiled") if trial else file.truncate(5000)
"""


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "llama.cpp" / "build" / "bin" / "llama-quantize"
    path.parent.mkdir(parents=True)
    path.write_text(PROGRAM)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("COCKPIT_LLAMA_CPP", str(tmp_path / "llama.cpp"))
    return path


def warnings(ctx: TriedContext) -> list[str]:
    return [event.message for event in ctx.events() if isinstance(event, Warned)]


def tensors(folder: Path, file_type: str) -> dict[str, bytes]:
    path = next(folder.glob(f"*-{file_type}.gguf"))
    return {tensor.name: tensor.data.tobytes() for tensor in gguf.GGUFReader(path).tensors}


@pytest.mark.thorough
def test_the_operators_program_writes_the_files_and_is_recorded(program: Path, base: Path, tmp_path: Path) -> None:
    own = {"token_embd": "Q8_0", "blk.1.ffn_down": "Q5_K"}
    ctx, _ = export(tmp_path / "own", base, "F16", "IQ2_XS", "Q4_K_M", imatrix_tokens=256, tensor_types=own)
    record = parity(ctx)["llama_quantize"]
    assert (record["path"], record["named_by"]) == (str(program), "COCKPIT_LLAMA_CPP")
    assert record["version"] == "7.7 (build 42, commit abcdef)"
    assert len(record["sha256"]) == 64
    assert record["self_test"] == {"IQ2_XS": "bytes", "Q4_K": "bytes"}
    assert "quantizer" not in parity(ctx), "the kernels were not needed"
    phases = [event.name for event in ctx.events() if isinstance(event, Phase)]
    assert "writing Q4_K_M with llama-quantize" in phases
    assert not warnings(ctx)
    assert not list(ctx.work.glob("source*")), "the file of full precision is gone"
    made = read_gguf(next(ctx.out.glob("*-IQ2_XS.gguf")))
    assert made.scalar("quantize.imatrix.entries_count") == 14
    assert made.tensors["token_embd.weight"].kind is TYPES["Q8_0"]
    more: dict[str, Any] = {"tensor_types": own, "quantizer": "kernels"}
    kernels, _ = export(tmp_path / "kernels", base, "IQ2_XS", "Q4_K_M", imatrix_tokens=256, **more)
    for name in ("IQ2_XS", "Q4_K_M"):
        assert tensors(ctx.out, name) == tensors(kernels.out, name)
    assert parity(kernels)["quantizer"]["name"] == "xllamacpp"


def test_a_program_that_fails_its_self_test_is_not_used_and_gives_a_warning(
    program: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OWN_SPOILS", "trial")
    ctx, _ = export(tmp_path / "auto", base, "Q4_0", parity_positions=0)
    assert parity(ctx)["quantizer"]["name"] == "xllamacpp"
    assert any(str(program) in text and "self-test" in text for text in warnings(ctx))
    with pytest.raises(OperatorError, match=r"self-test.*Q4_0"):
        export(tmp_path / "forced", base, "Q4_0", parity_positions=0, quantizer="llama-quantize")


@pytest.mark.parametrize("trouble", [pytest.param("OWN_FAILS", marks=pytest.mark.thorough), "OWN_SPOILS"])
def test_after_a_program_fails_the_kernels_write_the_remaining_files(
    trouble: str, program: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(trouble, {"OWN_FAILS": "Q8_0", "OWN_SPOILS": "file"}[trouble])
    ctx, _ = export(tmp_path / "auto", base, "Q8_0", parity_positions=0)
    assert parity(ctx)["quantizer"]["self_test"] == {"Q8_0": "bytes"}
    words = {"OWN_FAILS": "no room on the moon", "OWN_SPOILS": "damaged GGUF file"}[trouble]
    assert any(words in text and "kernels" in text for text in warnings(ctx))
    assert not list(ctx.out.glob("*.partial"))
    with pytest.raises(StageFailedError, match=words):
        export(tmp_path / "forced", base, "Q8_0", parity_positions=0, quantizer="llama-quantize")


@pytest.mark.thorough
def test_a_gguf_file_is_quantized_with_the_operators_program_too(
    program: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = read_model(base)
    source = tmp_path / "small-F16.gguf"
    write_gguf(model, model.plan("F16"), source, None)

    def make(out: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        lines: list[dict[str, Any]] = []
        job = {"source": str(source), "types": ["Q8_0", "Q4_0"], "out": str(tmp_path / out), "threads": 1}
        return quantize(read_job(json.dumps(job)), lines.append), lines

    record, lines = make("own")
    assert record["llama_quantize"]["version"] == "7.7 (build 42, commit abcdef)"
    assert [file["file_type"] for file in record["files"]] == ["Q8_0", "Q4_0"]
    assert "quantizer" not in record
    assert [line["progress"] for line in lines if "progress" in line][-1]["share"] == 1.0
    monkeypatch.setenv("OWN_FAILS", "Q4_0")
    record, lines = make("half")
    assert [file["file_type"] for file in record["files"]] == ["Q8_0", "Q4_0"]
    assert (record["llama_quantize"]["named_by"], record["quantizer"]["name"]) == ("COCKPIT_LLAMA_CPP", "xllamacpp")
    assert any("no room on the moon" in line.get("warning", "") for line in lines)
    assert tensors(tmp_path / "own", "Q4_0") == tensors(tmp_path / "half", "Q4_0")


def test_where_the_program_is_looked_for(program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in (tmp_path / "llama.cpp", program.parent, program):
        found = find_program(str(place))
        assert found is not None
        assert (found.path, found.named_by) == (program, "llama_cpp")
    with pytest.raises(OperatorError, match=r"llama_cpp — no llama-quantize"):
        find_program(str(tmp_path))
    monkeypatch.setenv("COCKPIT_LLAMA_CPP", str(tmp_path))
    with pytest.raises(OperatorError, match="COCKPIT_LLAMA_CPP"):
        find_program(None)
    monkeypatch.delenv("COCKPIT_LLAMA_CPP")
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    found = find_program(None)
    assert found is not None
    assert found.named_by == "PATH"


def test_a_required_program_that_is_missing_is_refused_and_numpy_can_be_required(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COCKPIT_LLAMA_CPP", raising=False)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(OperatorError, match="is not in llama_cpp"):
        export(tmp_path / "own", base, "Q8_0", parity_positions=0, quantizer="llama-quantize")
    ctx, _ = export(tmp_path / "numpy", base, "Q8_0", parity_positions=0, quantizer="numpy")
    record = parity(ctx)["quantizer"]
    assert record["name"] == "gguf numpy"
    assert record["version"]
    assert len(record["sha256"]) == 64
    with pytest.raises(OperatorError, match="needs llama"):
        export(tmp_path / "none", base, "Q4_K_M", parity_positions=0, quantizer="numpy")


def test_the_time_left_follows_the_measured_rates(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COCKPIT_LLAMA_CPP", raising=False)
    ctx, _ = export(tmp_path, base, "Q8_0", "IQ4_NL", parity_positions=0)
    rates = parity(ctx)["rates"]
    assert set(rates) >= {"Q8_0", "IQ4_NL"}
    assert all(rate > 0 for rate in rates.values())
