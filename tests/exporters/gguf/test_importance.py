"""Importance matrices: the measured values, their file, and the file types that get one."""

from __future__ import annotations

import json
import math
import random
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from exporters.gguf.importance import Importance, compute_importance, load_importance, save_importance
from exporters.gguf.quant_types import Shape
from exporters.gguf.write import read_model
from exporters.hf_model.model_folder import open_weights
from exporters.proof.parity_data import read_calibration_data, read_parity_data
from exporters.reference.streamed_model import StreamedModel
from exporters.stages.importance_step import types_to_weigh
from recipes.problems import OperatorError
from tests.exporters.exporting import export, parity
from tests.exporters.small_models import build_model
from tests.recipes.recipe_texts import problems_of

pytestmark = pytest.mark.torch


def test_it_is_the_mean_square_of_what_goes_into_each_layer(base: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    windows = [[5, 6, 7, 8], [9, 10]]
    name, module = "blk.1.ffn_gate.weight", "model.layers.1.mlp.gate_proj"
    done: list[int] = []
    network = StreamedModel(base, open_weights(base), 1)
    found = compute_importance(network, {name: module}, windows, "words", done.append)
    inputs = []
    layer = model.get_submodule(module)
    layer.register_forward_pre_hook(lambda _layer, given: inputs.append(given[0].reshape(-1, given[0].shape[-1])))
    with torch.no_grad():
        for window in windows:
            model(torch.tensor([window]))
    wanted = torch.cat(inputs).double().square().mean(0).float().numpy()
    np.testing.assert_allclose(found.values[name], wanted, rtol=1e-5)
    assert (found.tokens, sum(done)) == (6, 6), "padding of the shorter window is not counted"


def test_it_is_stored_as_llama_cpp_stores_it(tmp_path: Path) -> None:
    rows = {
        "blk.0.attn_q.weight": np.asarray([0.5, 2.0, 0.0], np.float32),
        "blk.0.ffn_up.weight": np.ones(5, np.float32),
    }
    save_importance(Importance(rows, 100, (4, 25), "test text"), tmp_path / "imatrix.gguf")
    reader = gguf.GGUFReader(tmp_path / "imatrix.gguf")
    fields = {name: reader.fields[name].contents() for name in reader.fields}
    assert fields["general.type"] == "imatrix"
    assert fields["imatrix.datasets"] == ["test text"]
    assert (fields["imatrix.chunk_count"], fields["imatrix.chunk_size"]) == (4, 25)
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    assert tensors["blk.0.attn_q.weight.in_sum2"].ravel().tolist() == [50.0, 200.0, 0.0]
    assert tensors["blk.0.attn_q.weight.counts"].ravel().tolist() == [100.0]
    back = load_importance(tmp_path / "imatrix.gguf")
    assert {name: row.tolist() for name, row in back.values.items()} == {
        name: row.tolist() for name, row in rows.items()
    }
    assert list(tmp_path.iterdir()) == [tmp_path / "imatrix.gguf"]


@pytest.mark.parametrize("content", [b"", b"GGUF", b"\xff" * 100])
def test_a_file_that_is_not_an_importance_matrix_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.gguf").write_bytes(content)
    with pytest.raises(OperatorError, match="not an importance matrix"):
        load_importance(tmp_path / "x.gguf")


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_impossible_importances_are_refused(tmp_path: Path, value: float) -> None:
    rows = {"blk.0.ffn_up.weight": np.asarray([1.0, value, 2.0], np.float32)}
    save_importance(Importance(rows, 10, (1, 10), "text"), tmp_path / "x.gguf")
    with pytest.raises(OperatorError, match="negative or non-finite"):
        load_importance(tmp_path / "x.gguf")


def test_any_damage_to_a_file_of_importances_gives_an_error_message(tmp_path: Path) -> None:
    rows = {f"blk.{layer}.ffn_up.weight": np.ones(32, np.float32) for layer in range(3)}
    save_importance(Importance(rows, 100, (4, 25), "test text"), tmp_path / "good.gguf")
    good, choose, spot = (tmp_path / "good.gguf").read_bytes(), random.Random(2), tmp_path / "x.gguf"
    messages = []
    for _ in range(300):
        spoiled, at = bytearray(good), choose.randrange(len(good) - 8)
        spoiled[at : at + 8] = struct.pack("<Q", choose.choice((0, 1, 2**32, 2**60, 2**64 - 1, choose.getrandbits(64))))
        spot.write_bytes(spoiled[: choose.choice((at + 4, None, None))])
        try:
            load_importance(spot)
        except OperatorError as error:
            messages.append(error.message)
    assert len(messages) > 100
    assert not any("\x1b" in words for words in messages)


def test_the_matrix_of_another_model_is_refused() -> None:
    importance = Importance({"a": np.ones(4, np.float32)}, 1, (1, 1), "")
    with pytest.raises(OperatorError, match="4 columns for a, but the tensor has 8"):
        importance.of(Shape("a", 2, 8))
    assert importance.of(Shape("b", 2, 8)) is None


def test_it_is_never_measured_on_the_documents_of_the_comparison(tmp_path: Path, base: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True)
    texts = [f"def f{n}(x): return x + {n}\n" * 4 for n in range(40)]
    for split, part in (("test", texts[:20]), ("val", texts[20:])):
        (tmp_path / f"{split}.jsonl").write_text(
            "".join(json.dumps({"path": "p", "text": text}) + "\n" for text in part)
        )
    for folder, splits in ((tmp_path, ("test", "val")), (None, ("", ""))):
        compared = read_parity_data(folder, tokenizer, positions=300, max_length=64)
        data = read_calibration_data(folder, tokenizer, tokens=300, max_length=64, besides=compared)
        assert data.positions >= 300
        assert not {s.text for s in data.samples} & {s.text for s in compared.samples}
        assert (compared.split, data.split) == splits
    (tmp_path / "val.jsonl").unlink()
    compared = read_parity_data(tmp_path, tokenizer, positions=100_000, max_length=64)
    with pytest.raises(OperatorError, match="no held-out text is left"):
        read_calibration_data(tmp_path, tokenizer, tokens=300, max_length=64, besides=compared)


@pytest.mark.thorough
def test_types_that_need_one_get_one_and_others_on_request(tmp_path: Path, base: Path) -> None:
    fields: dict[str, Any] = {"imatrix_tokens": 300, "parity_positions": 128}
    ctx, result = export(tmp_path / "auto", base, "Q4_K_M", "IQ3_XXS", **fields)
    record = parity(ctx)
    assert {file["file_type"]: file["imatrix"] for file in record["files"]} == {
        "Q4_K_M": False,
        "IQ3_XXS": True,
    }
    assert record["imatrix"]["tokens"] >= 300
    assert load_importance(ctx.out / "imatrix.gguf").tokens == record["imatrix"]["tokens"]
    assert any(artifact.name == "imatrix" for artifact in result.artifacts)
    again, _ = export(tmp_path / "always", base, "Q4_K_M", imatrix="always", **fields)
    assert parity(again)["files"][0]["imatrix"] is True
    tensors = [
        {t.name: t.data.tobytes() for t in gguf.GGUFReader(next(c.out.glob("*Q4_K_M.gguf"))).tensors}
        for c in (ctx, again)
    ]
    assert tensors[0]["blk.0.ffn_up.weight"] != tensors[1]["blk.0.ffn_up.weight"]


def test_widths_that_are_not_multiples_of_the_block_need_no_matrix(tmp_path: Path, tokenizer: Path) -> None:
    odd = read_model(build_model(tmp_path, tokenizer, hidden_size=96, intermediate_size=160, num_attention_heads=4))
    assert types_to_weigh(odd, ["IQ2_XXS"], "auto") == set()
    assert types_to_weigh(odd, ["IQ2_XXS", "F16", "Q8_0"], "always") == {"IQ2_XXS"}


def test_a_recipe_that_forbids_a_required_matrix_is_refused_at_its_line() -> None:
    text = (
        'schema = 1\nname = "x"\n[[stage]]\nname = "g"\nkind = "export"\nmodel = "a/b"\nfile_types = '
        '["IQ2_XS"]\nimatrix = "never"\n'
    )
    (problem,) = problems_of(text, Path("x.toml"))
    assert (problem.line, problem.key) == (8, "g.imatrix")


def test_ternary_types_are_only_for_ternary_models(tmp_path: Path, base: Path, tokenizer: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    with pytest.raises(OperatorError, match=r"TQ2_0 stores only -s, 0 and s, but blk\.0\.") as caught:
        export(tmp_path / "a", base, "F16", "TQ2_0", parity_positions=0)
    assert "Q2_K" in caught.value.hint
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "_proj" in name:
                scale = parameter.abs().mean().half().float()
                parameter.copy_((parameter / scale).round().clamp(-1, 1) * scale)
    model.save_pretrained(tmp_path / "ternary")
    for file in tokenizer.iterdir():
        (tmp_path / "ternary" / file.name).write_bytes(file.read_bytes())
    _, result = export(tmp_path / "b", tmp_path / "ternary", "TQ1_0", "TQ2_0", "Q8_0", parity_positions=256)
    assert 0 < result.metrics["tq2_0_mean_kl"] < 3e-3
    assert 0 < result.metrics["tq1_0_mean_kl"] < 3e-3
