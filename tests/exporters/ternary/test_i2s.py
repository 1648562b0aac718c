"""i2_s: three byte layouts, a validator, and a refusal for models that are not ternary."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from engines.context import StageFailedError
from engines.llama.gguf_file import read_gguf
from exporters.gguf.write import read_model
from exporters.ternary import i2s
from exporters.ternary.i2s_file import ternary_scales, validate, write_i2s
from recipes.problems import OperatorError
from tests.exporters.exporting import export, parity
from tests.exporters.small_models import build_model

pytestmark = pytest.mark.torch
ROOT = Path(__file__).resolve().parents[3]
TENSOR = "blk.1.ffn_up.weight"


@pytest.fixture(scope="module")
def ternary(tmp_path_factory: pytest.TempPathFactory, tokenizer: Path) -> Path:
    """A model whose projections contain only -s, 0 and s, each with its own s."""
    import torch
    from safetensors.torch import load_file, save_file

    folder = build_model(tmp_path_factory.mktemp("ternary"), tokenizer, hidden_size=128, intermediate_size=256)
    weights = load_file(folder / "model.safetensors")
    for number, (name, value) in enumerate(weights.items()):
        if "_proj" in name:
            scale = value.abs().mean() * (1 + number / 100)
            weights[name] = (value / scale).round().clamp(-1, 1) * scale
            assert len(torch.unique(weights[name])) == 3
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def made(tmp_path: Path, model: Path, layout: str) -> Path:
    ctx, _ = export(tmp_path, model, "F16", parity_positions=0, i2s=layout)
    return next(ctx.out.glob("*-I2_S-*.gguf"))


def spoil(source: Path, target: Path, place: int, data: bytes) -> Path:
    shutil.copy(source, target)
    tensor = read_gguf(target).tensors[TENSOR]
    with target.open("r+b") as file:
        file.seek(tensor.start + (place if place >= 0 else tensor.rows * tensor.columns // 4 + 32 + place))
        file.write(data)
    return target


def test_the_layouts_are_those_of_bitnet() -> None:
    codes = np.zeros((4, 128), np.uint8)
    codes[0, [0, 32, 64, 96]] = [2, 1, 0, 2]
    assert i2s.pack(codes, "x86-128")[0] == 0b10_01_00_10
    codes[0, :] = 0
    codes[0, [64, 80, 96, 112]] = [1, 2, 1, 0]
    assert i2s.pack(codes, "arm-64")[16] == 0b01_10_01_00
    codes[:, 5] = [0, 1, 2, 1]
    assert i2s.pack(codes, "x86-rows4")[5] == 0b00_01_10_01


@pytest.mark.parametrize("layout", i2s.LAYOUTS)
def test_packed_codes_are_unpacked_in_their_layout_and_in_no_other(layout: str) -> None:
    codes = np.random.default_rng(1).integers(0, 3, (64, 384)).astype(np.uint8)
    packed = i2s.pack(codes, layout)
    assert packed.nbytes == codes.size // 4
    assert (i2s.unpack(packed, 64, 384, layout) == codes).all()
    for other in set(i2s.LAYOUTS) - {layout}:
        assert (i2s.unpack(packed, 64, 384, other) == codes).mean() < 0.7


@pytest.mark.parametrize("layout", i2s.LAYOUTS)
def test_an_export_of_a_ternary_model_has_its_values_exactly(layout: str, ternary: Path, tmp_path: Path) -> None:
    ctx, result = export(tmp_path, ternary, "F16", parity_positions=0, i2s=layout)
    record = parity(ctx)["i2s"]
    assert (record["layout"], record["compared"], record["tensors"]) == (layout, True, 14)
    assert f"I2_S-{layout}" in {artifact.name for artifact in result.artifacts}
    file = read_gguf(ctx.out / record["file"])
    assert file.scalar(i2s.LAYOUT_KEY) == layout
    assert file.scalar("general.file_type") == 40
    model = read_model(ternary)
    shape = next(shape for shape in model.shapes if shape.name == TENSOR)
    decoded = i2s.read_tensor(file, file.tensors[TENSOR], layout)
    assert (decoded.values == model.weights.read_rows(model.sources[TENSOR].name, 0, shape.rows)).all()
    assert file.tensors["token_embd.weight"].kind is not None
    assert record["bytes"] < next(ctx.out.glob("*-F16.gguf")).stat().st_size


def test_other_models_and_widths_are_refused_before_anything_is_written(
    base: Path, tokenizer: Path, tmp_path: Path
) -> None:
    with pytest.raises(OperatorError, match=r"i2_s stores only -s, 0 and s, but blk\.0\."):
        export(tmp_path / "a", base, "F16", parity_positions=0, i2s="x86-128")
    assert not list(tmp_path.rglob("*.gguf"))
    odd = build_model(tmp_path / "odd", tokenizer, hidden_size=96, intermediate_size=160, num_attention_heads=4)
    with pytest.raises(OperatorError, match="allowed a multiple of 128"):
        export(tmp_path / "b", odd, "F16", parity_positions=0, i2s="x86-128")


def test_the_validator_names_what_is_wrong(ternary: Path, tmp_path: Path) -> None:
    model, whole = read_model(ternary), made(tmp_path, ternary, "x86-128")
    assert validate(whole)["compared"] is False
    assert validate(whole, model)["values"] == sum(
        shape.rows * shape.columns for shape in model.shapes if shape.layer is not None and shape.dimensions == 2
    )
    target = tmp_path / "spoiled.gguf"
    for place, data, words in (
        (7, b"\xff", "code — got 3"),
        (-32, np.float32(np.inf).tobytes(), "scale — got inf"),
        (-32, np.float32(-1).tobytes(), "scale — got -1"),
        (-5, b"x", "not zero"),
    ):
        spoil(whole, target, place, data)
        with pytest.raises(OperatorError, match=words) as caught:
            validate(target)
        assert TENSOR in caught.value.message
    spoil(whole, target, -32, np.float32(0.5).tobytes())
    validate(target)
    with pytest.raises(OperatorError, match=r"row 0, column \d+ differs from the model"):
        validate(target, model)
    data = whole.read_bytes()
    target.write_bytes(data.replace(b"x86-128", b"ARM-128"))
    with pytest.raises(OperatorError, match=r"cockpit\.i2s\.layout — got ARM-128"):
        validate(target)
    target.write_bytes(data.replace(b"cockpit.i2s.layout", b"cockpit.i2s.loyaut"))
    with pytest.raises(OperatorError, match="got nothing"):
        validate(target)


def test_bytes_in_another_layout_than_the_declared_one_are_found_out_by_comparison(
    ternary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = i2s.pack
    monkeypatch.setattr(i2s, "pack", lambda codes, _layout: pack(codes, "arm-64"))
    model, path = read_model(ternary), tmp_path / "claims.gguf"
    write_i2s(model, ternary_scales(model, "x86-128"), "x86-128", path)
    assert validate(path)["layout"] == "x86-128", "the bytes alone show no error"
    with pytest.raises(OperatorError, match="differs from the model"):
        validate(path, model)
    with pytest.raises(StageFailedError, match="the i2_s file differs from the model"):
        export(tmp_path, ternary, "F16", parity_positions=0, i2s="x86-128")


def test_the_validator_is_a_command(ternary: Path, tmp_path: Path) -> None:
    whole = made(tmp_path, ternary, "arm-64")
    command = [sys.executable, "-m", "exporters.ternary.i2s_check", str(whole), str(ternary)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert '"layout": "arm-64"' in done.stdout
    plain = next(whole.parent.glob("*-F16.gguf"))
    refused = subprocess.run([*command[:3], str(plain)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "cockpit.i2s.layout" in refused.stderr
