"""Quantizing GGUF files: the bytes of an export of the model, refusals before writing, kills, and the command."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from engines.llama.gguf_file import read_gguf
from engines.llama.gguf_write import NewTensor, text_value, uint32_value
from engines.llama.quantizer import open_quantizer
from exporters.gguf.file_writer import ready, write_file
from exporters.gguf.importance import Importance, save_importance
from exporters.gguf.write import read_model, write_gguf
from exporters.quantize.quantize_file import quantize, read_job
from recipes.problems import OperatorError
from tests.exporters.small_models import build_model

pytestmark = pytest.mark.torch
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    """F32, F16 and BF16 files of one model."""
    folder = tmp_path_factory.mktemp("sources")
    model = read_model(base)
    for name in ("F32", "F16", "BF16"):
        write_gguf(model, model.plan(name), folder / f"small-{name}.gguf", None)
    return folder


def job(source: Path, *types: str, out: Path, **fields: Any) -> dict[str, Any]:
    return {"source": str(source), "types": list(types), "out": str(out), "threads": 2, **fields}


def make(source: Path, *types: str, out: Path, **fields: Any) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    quantize(read_job(json.dumps(job(source, *types, out=out, **fields))), lines.append)
    return lines


def refusal(source: Path, *types: str, out: Path, **fields: Any) -> OperatorError:
    with pytest.raises(OperatorError) as caught:
        make(source, *types, out=out, **fields)
    assert not list(out.glob("*")), "nothing was begun"
    return caught.value


def tensors(path: Path) -> dict[str, tuple[str, bytes]]:
    return {t.name: (t.tensor_type.name, t.data.tobytes()) for t in gguf.GGUFReader(path).tensors}


def importance(model: Path) -> Importance:
    rng = np.random.default_rng(1)
    inside = [s for s in read_model(model).shapes if s.layer is not None and s.dimensions == 2]
    return Importance({s.name: rng.gamma(1, 2, s.columns).astype(np.float32) for s in inside}, 1, (1, 1), "numbers")


def test_a_float_file_gives_the_tensors_that_an_export_of_the_model_gives(
    sources: Path, base: Path, tmp_path: Path
) -> None:
    lines = make(sources / "small-F32.gguf", "Q4_K_M", "Q8_0", "IQ4_NL", out=tmp_path)
    model = read_model(base)
    quantizer, _ = open_quantizer({"Q4_K", "Q6_K", "Q8_0", "IQ4_NL", "Q5_K"}, 1)
    for name in ("Q4_K_M", "Q8_0", "IQ4_NL"):
        write_gguf(model, model.plan(name), tmp_path / "export.gguf", quantizer)
        assert tensors(tmp_path / f"small-{name}.gguf") == tensors(tmp_path / "export.gguf")
    quantizer.close()
    record = json.loads((tmp_path / "small.quantize.json").read_text())
    assert [file["file_type"] for file in record["files"]] == ["Q4_K_M", "Q8_0", "IQ4_NL"]
    assert record["quantizer"]["self_test"]["Q4_K"] == "bytes"
    assert len(record["source"]["sha256"]) == 64
    assert not list(tmp_path.glob("*.partial"))
    progress = [line["progress"] for line in lines if "progress" in line]
    assert progress[-1] == {"share": 1.0, "left_s": 0.0}
    assert [line["estimated_s"] > 0 for line in lines if "estimated_s" in line] == [True] * 3
    assert any("values/s" in line.get("note", "") for line in lines)


@pytest.mark.parametrize("kind", ["F16", "BF16"])
def test_sixteen_bits_are_widened_and_the_keys_are_kept(kind: str, sources: Path, tmp_path: Path) -> None:
    source = sources / f"small-{kind}.gguf"
    make(source, "Q5_K_S", out=tmp_path)
    given, made = read_gguf(source), read_gguf(tmp_path / "small-Q5_K_S.gguf")
    assert made.scalar("general.file_type") == 16
    changed = {"general.file_type", "general.quantization_version"}
    assert {k: v for k, v in made.keys.items() if k not in changed} == {
        k: v for k, v in given.keys.items() if k not in changed
    }
    reader = gguf.GGUFReader(source)
    data = next(t.data for t in reader.tensors if t.name == "blk.0.ffn_up.weight")
    wide = data.astype(np.float32) if kind == "F16" else (data.view("<u2").astype("<u4") << 16).view("<f4")
    quantizer, _ = open_quantizer({"Q5_K"}, 1)
    assert tensors(tmp_path / "small-Q5_K_S.gguf")["blk.0.ffn_up.weight"] == (
        "Q5_K",
        quantizer.quantize("Q5_K", np.ascontiguousarray(wide.reshape(512, 256))).tobytes(),
    )
    quantizer.close()


def test_an_importance_matrix_is_used_noted_and_required(sources: Path, base: Path, tmp_path: Path) -> None:
    source, matrix = sources / "small-F32.gguf", tmp_path / "imatrix.gguf"
    assert "needs an importance matrix" in refusal(source, "IQ2_XS", out=tmp_path / "none").message
    save_importance(importance(base), matrix)
    make(source, "IQ2_XS", "Q4_K_S", out=tmp_path, imatrix=str(matrix))
    made = read_gguf(tmp_path / "small-IQ2_XS.gguf")
    assert made.scalar("quantize.imatrix.file") == "imatrix.gguf"
    assert made.scalar("quantize.imatrix.entries_count") == 14
    make(source, "Q4_K_S", out=tmp_path / "plain")
    assert tensors(tmp_path / "plain" / "small-Q4_K_S.gguf") != tensors(tmp_path / "small-Q4_K_S.gguf")
    part = importance(base)
    del part.values["blk.1.ffn_up.weight"]  # type: ignore[attr-defined]
    save_importance(part, matrix)
    assert (
        "no values for blk.1.ffn_up.weight"
        in refusal(source, "IQ2_XS", out=tmp_path / "some", imatrix=str(matrix)).message
    )


def mixture(path: Path, family: str, experts: int = 8) -> dict[str, np.ndarray[Any, Any]]:
    """Write a file of a family that Cockpit does not convert: one layer with attention and experts, fused gates."""
    rng = np.random.default_rng(5)
    sizes = {
        "token_embd.weight": (256, 64),
        "blk.0.attn_qkv.weight": (256, 512),
        "blk.0.attn_output.weight": (256, 256),
        "blk.0.ffn_gate_inp.weight": (256, experts),
        "blk.0.ffn_up_exps.weight": (256, 96, experts),
        "blk.0.ffn_down_exps.weight": (96, 256, experts),
        "blk.0.attn_norm.weight": (256,),
    }
    values = {name: rng.standard_normal(size[::-1]).astype(np.float32) for name, size in sizes.items()}
    counts = {"block_count": 1, "expert_count": experts, "attention.head_count": 4, "attention.head_count_kv": 2}
    keys = {"general.architecture": text_value(family), "general.file_type": uint32_value(0)}
    keys |= {f"{family}.{key}": uint32_value(value) for key, value in counts.items()}
    tensors = [
        (NewTensor(name, sizes[name], 0, rows.nbytes), [ready(rows, rows.size)]) for name, rows in values.items()
    ]
    with path.open("wb") as file:
        write_file(file, keys, tensors)
    return values


def test_experts_of_any_family_are_quantized_each_with_its_own_importances(tmp_path: Path) -> None:
    values = mixture(tmp_path / "mixture-F32.gguf", "phimoe")
    rng = np.random.default_rng(6)
    rows = {name: rng.gamma(1, 2, (8, 256)).astype(np.float32) for name in ("blk.0.ffn_up_exps.weight",)}
    counts = {name: np.asarray([9, 0, 1, 2, 3, 4, 5, 6], np.float32) for name in rows}
    save_importance(Importance(rows, 9, (1, 9), "numbers", counts), tmp_path / "imatrix.gguf")
    make(tmp_path / "mixture-F32.gguf", "Q4_K_M", out=tmp_path, imatrix=str(tmp_path / "imatrix.gguf"))
    made = tensors(tmp_path / "mixture-Q4_K_M.gguf")
    assert {name: kind for name, (kind, _) in made.items()} == {
        "token_embd.weight": "Q6_K",
        "blk.0.attn_qkv.weight": "Q8_0",
        "blk.0.attn_output.weight": "Q5_K",
        "blk.0.ffn_gate_inp.weight": "F32",
        "blk.0.ffn_up_exps.weight": "Q4_K",
        "blk.0.ffn_down_exps.weight": "Q8_0",  # Q6_K in every layer of one, but 96 is no multiple of 256
        "blk.0.attn_norm.weight": "F32",
    }
    quantizer, _ = open_quantizer({"Q4_K"}, 1)
    name = "blk.0.ffn_up_exps.weight"
    weights = rows[name].copy()
    weights[1] = 1  # an expert that got no token has no preference
    single = [quantizer.quantize("Q4_K", values[name][e], weights[e]).tobytes() for e in range(8)]
    quantizer.close()
    assert made[name][1] == b"".join(single)
    shapes = {t.name: list(t.shape) for t in gguf.GGUFReader(tmp_path / "mixture-Q4_K_M.gguf").tensors}
    assert shapes[name] == [256, 96, 8]


def test_a_matrix_for_another_number_of_experts_and_a_family_with_its_own_rules_are_refused(tmp_path: Path) -> None:
    mixture(tmp_path / "m-F32.gguf", "qwen3moe", experts=4)
    rows = {"blk.0.ffn_up_exps.weight": np.ones((8, 256), np.float32)}
    save_importance(Importance(rows, 1, (1, 1), "numbers"), tmp_path / "imatrix.gguf")
    found = refusal(tmp_path / "m-F32.gguf", "Q4_K_M", out=tmp_path / "a", imatrix=str(tmp_path / "imatrix.gguf"))
    assert "8 x 256 columns for blk.0.ffn_up_exps.weight, but the tensor has 4 x 256" in found.message
    mixture(tmp_path / "f-F32.gguf", "falcon")
    assert "rules of its own" in refusal(tmp_path / "f-F32.gguf", "Q8_0", out=tmp_path / "b").message


def test_what_is_already_quantized_or_unknown_is_refused(sources: Path, tmp_path: Path) -> None:
    source = sources / "small-F32.gguf"
    make(source, "Q8_0", out=tmp_path)
    again = refusal(tmp_path / "small-Q8_0.gguf", "Q4_K_M", out=tmp_path / "again")
    assert "has type Q8_0: the file is already quantized" in again.message
    assert "F32, F16 or BF16" in again.hint
    assert "Q7" in refusal(source, "Q7", out=tmp_path / "b").message
    assert "contains other values" in refusal(source, "TQ2_0", out=tmp_path / "c").message
    data = source.read_bytes()
    other = tmp_path / "other.gguf"
    other.write_bytes(data.replace(b"llama", b"lamas"))
    assert "general.architecture" in refusal(other, "Q8_0", out=tmp_path / "d").message
    other.write_bytes(data[:-1000])
    assert "truncated" in refusal(other, "Q8_0", out=tmp_path / "e").message


def test_a_value_that_is_not_finite_stops_the_job_without_a_file(sources: Path, tmp_path: Path) -> None:
    spoiled = tmp_path / "spoiled.gguf"
    shutil.copy(sources / "small-F32.gguf", spoiled)
    place = read_gguf(spoiled).tensors["blk.1.attn_q.weight"]
    with spoiled.open("r+b") as file:
        file.seek(place.start + 40)
        file.write(np.float32(np.nan).tobytes())
    with pytest.raises(OperatorError, match=r"blk\.1\.attn_q\.weight contains a value that is not finite"):
        make(spoiled, "Q8_0", out=tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_a_full_disk_is_reported_before_writing(sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr("exporters.quantize.quantize_file.shutil.disk_usage", lambda _: free)
    assert "1000 B free" in refusal(sources / "small-F32.gguf", "Q8_0", out=tmp_path / "out").message


def written(folder: Path) -> int:
    """Bytes in a folder's files, some of which may be renamed meanwhile."""
    total = 0
    with suppress(FileNotFoundError):
        for path in folder.iterdir():
            total += path.stat().st_size
    return total


@pytest.mark.slow
@pytest.mark.thorough
def test_a_kill_leaves_no_partial_file_under_a_final_name_and_a_retry_succeeds(sources: Path, tmp_path: Path) -> None:
    source = sources / "small-F32.gguf"
    make(source, "Q4_K_M", "Q8_0", out=tmp_path / "whole")
    wanted = {path.name: path.read_bytes() for path in (tmp_path / "whole").glob("*.gguf")}
    total, rng = sum(map(len, wanted.values())), random.Random(9)
    for number in range(5):
        out = tmp_path / str(number)
        command = [
            sys.executable,
            "-m",
            "exporters.quantize.quantize_file",
            json.dumps(job(source, "Q4_K_M", "Q8_0", out=out, force=True)),
        ]
        limit = int(total * (number + rng.random()) / 5)
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as process:
            while process.poll() is None:
                if written(out) >= limit:
                    os.kill(process.pid, signal.SIGKILL)
                    break
        for path in out.glob("*.gguf"):
            assert path.read_bytes() == wanted[path.name], limit
        assert subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=False).returncode == 0
        assert {path.name: path.read_bytes() for path in out.glob("*.gguf")} == wanted
        assert not list(out.glob("*.partial"))


def test_the_command_quantizes_reports_and_refuses(sources: Path, tmp_path: Path) -> None:
    def cockpit(*words: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "COCKPIT_RUNS_DIR": str(tmp_path / "runs")}
        command = [sys.executable, "-m", "cockpit", "quantize", *words]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)

    source = str(sources / "small-F16.gguf")
    done = cockpit(source, "--types", "Q4_0,Q8_0", "--out", str(tmp_path / "made"), "--threads", "1")
    assert done.returncode == 0, done.stderr
    assert "small-Q4_0.gguf" in done.stderr
    assert "measured:" in done.stderr
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == [
        "small-Q4_0.gguf",
        "small-Q8_0.gguf",
        "small.quantize.json",
    ]
    result = cockpit(source, "--types", "Q8_0", "--out", str(tmp_path / "json"), "--json")
    assert [json.loads(line) for line in result.stdout.splitlines()][-1]["file"]["file"] == "small-Q8_0.gguf"
    for words, part in (
        ((source, "--types", "Q9"), "--types"),
        ((str(tmp_path / "none.gguf"),), "no file"),
        ((source, "--detach"), "immediately"),
        ((source, "--imatrix", "nowhere"), "--imatrix"),
        ((str(tmp_path), "--imatrix", "file.gguf"), "auto, always, never"),
    ):
        refused = cockpit(*words)
        assert refused.returncode == 2, refused
        assert part in refused.stderr


def test_odd_widths_are_reported_before_writing(tokenizer: Path, tmp_path: Path) -> None:
    model = read_model(
        build_model(tmp_path / "odd", tokenizer, hidden_size=96, intermediate_size=160, num_attention_heads=4)
    )
    write_gguf(model, model.plan("F16"), tmp_path / "odd-F16.gguf", None)
    lines = make(tmp_path / "odd-F16.gguf", "Q4_K_M", out=tmp_path)
    warned = next(index for index, line in enumerate(lines) if "bits per weight" in line.get("warning", ""))
    assert warned < next(index for index, line in enumerate(lines) if "writing" in line.get("phase", ""))


def test_own_tensor_types_are_written_and_recorded_and_wrong_ones_refused(sources: Path, tmp_path: Path) -> None:
    source, own = sources / "small-F32.gguf", {"ffn_down": "q5_k", "token_embd": "Q8_0"}
    make(source, "Q4_K_S", out=tmp_path, tensor_types=own)
    kinds = {name: kind for name, (kind, _) in tensors(tmp_path / "small-Q4_K_S.gguf").items()}
    assert (kinds["blk.0.ffn_down.weight"], kinds["token_embd.weight"], kinds["blk.0.ffn_up.weight"]) == (
        "Q5_K",
        "Q8_0",
        "Q4_K",
    )
    (record,) = json.loads((tmp_path / "small.quantize.json").read_text())["files"]
    assert record["tensor_types"] == {"ffn_down": "Q5_K", "token_embd": "Q8_0"}
    values = read_gguf(source)
    assert record["bits_per_weight"] == pytest.approx(
        8
        * sum(
            t.kind.row_bytes(t.columns) * t.rows
            for t in read_gguf(tmp_path / "small-Q4_K_S.gguf").tensors.values()
            if t.kind
        )
        / sum(t.rows * t.columns for t in values.tensors.values())
    )
    wrong = refusal(source, "Q4_K_S", out=tmp_path / "none", tensor_types={"ffn_down": "Q6K", "x": "Q7_K"}).message
    assert "--tensor-types — ffn_down: got Q6K" in wrong
    assert "--tensor-types — x: got Q7_K" in wrong
    assert (
        "needs an importance matrix"
        in refusal(source, "Q4_K_S", out=tmp_path / "none", tensor_types={"ffn_up": "IQ2_XS"}).message
    )


def test_nothing_is_replaced_without_force_and_every_report_is_kept(sources: Path, tmp_path: Path) -> None:
    source, out = sources / "small-F32.gguf", tmp_path / "out"
    make(source, "Q8_0", out=out)
    (out / "small-Q8_0.gguf").write_text("mine")
    with pytest.raises(OperatorError, match=r"small-Q8_0\.gguf exists") as refused:
        make(source, "Q8_0", "Q4_0", out=out)
    assert "--force" in refused.value.hint
    assert (out / "small-Q8_0.gguf").read_text() == "mine"
    assert not (out / "small-Q4_0.gguf").exists()
    make(source, "Q4_0", out=out)
    reports = [json.loads(path.read_text()) for path in sorted(out.glob("*.quantize*.json"))]
    assert [[item["file_type"] for item in report["files"]] for report in reports] == [["Q4_0"], ["Q8_0"]]
    make(source, "Q8_0", out=out, force=True)
    assert (out / "small-Q8_0.gguf").stat().st_size > 1000


def test_a_file_is_never_replaced_by_its_own_quantization(sources: Path, tmp_path: Path) -> None:
    source = tmp_path / "small-Q8_0.gguf"
    shutil.copyfile(sources / "small-F32.gguf", source)
    (tmp_path / "small-Q8_0-Q8_0.gguf").hardlink_to(source)
    with pytest.raises(OperatorError, match="its own quantization"):
        make(source, "Q8_0", out=tmp_path, force=True)
