"""The rows of file types and tensor types: the one place, and true to llama.cpp's own numbers."""

from __future__ import annotations

import ast
from itertools import product
from pathlib import Path

import gguf
import pytest

from engines.llama.ggml_types import TYPES, TensorType
from engines.llama.golden import check_golden
from engines.llama.quantizer import NumpyQuantizer, open_quantizer
from exporters.gguf.quant_types import model_shapes, plan_file
from exporters.hf_model.families.llama import LLAMA
from recipes.fields import fields_of
from recipes.file_types import ALIASES, FILE_TYPES, FIRST_FILE_TYPES, FileType, file_type_name, file_type_of_id
from recipes.reference import json_schema, reference_text
from recipes.stages.export import ExportStage

ROOT = Path(__file__).resolve().parents[3]
THEIR_IDS = {kind.name.removeprefix("MOSTLY_").removeprefix("ALL_"): kind.value for kind in gguf.LlamaFileType}
EVERY_ROW = pytest.mark.parametrize("row", FILE_TYPES.values(), ids=FILE_TYPES)
EVERY_TENSOR_TYPE = pytest.mark.parametrize("kind", TYPES.values(), ids=TYPES)
SLOW_TABLES = {"IQ1_S", "IQ1_M", "IQ2_S"}
"""Types whose kernels first search their tables for seconds."""
BLOCKS = [kind for kind in TYPES.values() if not kind.plain]


@EVERY_ROW
def test_a_row_has_the_number_that_llama_cpp_gives_its_type(row: FileType) -> None:
    assert row.id == THEIR_IDS[row.name]
    assert file_type_of_id(row.id) is row
    assert sum(other.id == row.id for other in FILE_TYPES.values()) == 1


@EVERY_ROW
def test_a_recipe_may_write_a_name_in_any_case(row: FileType) -> None:
    given = [row.name.lower(), row.name.title()]
    assert (
        ExportStage(kind="export", name="x", model="m", file_types=given, imatrix="always").file_types == [row.name] * 2
    )


def test_another_name_of_a_row_means_the_row() -> None:
    assert {alias: file_type_name(alias.lower()) for alias in ALIASES} == ALIASES
    assert not set(ALIASES) & set(FILE_TYPES)
    assert [file_type_name(other) for other in ("q4_k_x", 4, None)] == ["q4_k_x", 4, None]


def test_a_number_without_a_row_has_no_type() -> None:
    assert file_type_of_id(gguf.LlamaFileType.GUESSED) is None


@EVERY_ROW
def test_a_row_agrees_with_its_base_type(row: FileType) -> None:
    base = TYPES[row.base]
    assert (row.bits_per_weight, row.quantized) == (base.bits_per_weight, not base.plain)
    mixed = [base, *(TYPES[rule.type] for rules in row.parts.values() for rule in rules)]
    required = any(kind.importance == "required" for kind in mixed)
    assert row.importance == ("required" if required else base.importance)


@EVERY_ROW
def test_everything_that_a_row_mixes_has_a_kernel_with_a_self_test(row: FileType) -> None:
    mixed = {
        row.base,
        row.common,
        row.head,
        row.embedding or row.base,
        *(rule.type for rules in row.parts.values() for rule in rules),
    }
    assert all(TYPES[name].rms_limit > 0 and TYPES[name].digests for name in mixed if not TYPES[name].plain)


@EVERY_ROW
def test_a_row_plans_every_tensor_of_a_model(row: FileType) -> None:
    config = {"hidden_size": 512, "intermediate_size": 768, "num_hidden_layers": 32, "num_attention_heads": 8}
    ends = [*range(4), *range(28, 32)]
    for kv_heads, tied, importance in product((8, 2), (True, False), (True, False)):
        more = {"num_key_value_heads": kv_heads, "tie_word_embeddings": tied, "vocab_size": 300}
        shapes = model_shapes(LLAMA, config | more)
        plan = plan_file(row.name, shapes, layers=32, gqa=8 // kv_heads, importance=importance)
        chosen = {choice.shape.name: choice.type for choice in plan.choices}
        assert {chosen[f"blk.{layer}.ffn_up.weight"] for layer in ends} == {row.common}
        assert bool(plan.needs_importance) == (row.importance == "required")
        assert not plan.fallbacks


@EVERY_ROW
def test_the_reference_and_the_choices_of_a_recipe_name_every_row(row: FileType) -> None:
    (choices,) = (spec.choices for spec in fields_of("export") if spec.path == "file_types")
    assert row.name in choices
    assert row.name in json_schema()["definitions"]["export"]["properties"]["file_types"]["items"]["enum"]
    assert f"\n| `{row.name}` | {row.bits_per_weight:g} | {row.id} | {row.importance} |" in reference_text()


def test_what_is_written_by_default_has_rows() -> None:
    assert set(FIRST_FILE_TYPES) <= set(FILE_TYPES)


@EVERY_TENSOR_TYPE
def test_a_tensor_type_has_the_layout_that_the_gguf_package_knows(kind: TensorType) -> None:
    theirs = gguf.GGMLQuantizationType[kind.name]
    assert (kind.id, (kind.block, kind.block_bytes)) == (theirs.value, gguf.GGML_QUANT_SIZES[theirs])
    assert TYPES[kind.fallback].block < kind.block or kind.block <= 32


@pytest.mark.parametrize(
    "names",
    [
        {kind.name for kind in BLOCKS} - SLOW_TABLES,
        pytest.param(SLOW_TABLES, marks=pytest.mark.thorough),
    ],
    ids=["usual", "slow tables"],
)
def test_the_kernels_pass_the_self_test_of_every_tensor_type(names: set[str]) -> None:
    quantizer, notes = open_quantizer(names, 1, "kernels")
    quantizer.close()
    assert (set(quantizer.record["self_test"]), notes) == (names, [])


@pytest.mark.parametrize("kind", [kind for kind in BLOCKS if kind.in_numpy], ids=lambda kind: kind.name)
def test_a_type_that_is_marked_for_numpy_is_quantized_by_numpy(kind: TensorType) -> None:
    assert check_golden(NumpyQuantizer(), kind.name) in ("bytes", "error bound")


def test_no_other_module_has_a_list_of_file_types() -> None:
    names = {row.name for row in FILE_TYPES.values() if row.quantized}
    lists = {}
    for folder in ("cockpit", "engines", "exporters", "recipes"):
        for path in (ROOT / folder).rglob("*.py"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            found = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and node.value in names}
            if len(found) > 2:
                lists[str(path.relative_to(ROOT))] = sorted(found)
    assert set(lists) == {"recipes/file_types.py", "engines/llama/ggml_types.py"}
