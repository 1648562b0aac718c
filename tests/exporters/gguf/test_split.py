"""Models in several GGUF files: written as llama.cpp's gguf-split does, and read wherever one file is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import gguf
import pytest

from engines.files import file_sha256
from engines.llama.gguf_file import read_gguf
from engines.llama.process import LlamaProcess
from exporters.gguf.split import split_larger, written_parts
from exporters.gguf.write import read_model, write_gguf
from exporters.proof.parity_run import compare_runtimes
from exporters.proof.parity_run import read_job as parity_job
from exporters.quantize.quantize_file import quantize, read_job
from recipes.problems import OperatorError
from recipes.stages.export import ExportStage, shard_bytes
from tests.exporters.exporting import export, parity

LIMIT = 150_000


@pytest.fixture(scope="module")
def whole(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "small-F16.gguf"
    model = read_model(base)
    write_gguf(model, model.plan("F16"), path, None)
    return path


@pytest.fixture
def parts(whole: Path, tmp_path: Path) -> list[Path]:
    return split_larger(Path(shutil.copyfile(whole, tmp_path / whole.name)), LIMIT)


def test_the_parts_have_all_tensors_once_and_only_the_first_the_models_keys(whole: Path, parts: list[Path]) -> None:
    assert len(parts) > 2
    assert [path.name for path in parts] == [
        f"small-F16-{n:05d}-of-{len(parts):05d}.gguf" for n in range(1, len(parts) + 1)
    ]
    assert not (parts[0].parent / whole.name).exists()
    readers = [gguf.GGUFReader(path) for path in parts]
    names = [tensor.name for reader in readers for tensor in reader.tensors]
    assert names == [tensor.name for tensor in gguf.GGUFReader(whole).tensors]
    for number, reader in enumerate(readers):
        assert reader.fields["split.no"].contents() == number
        assert reader.fields["split.count"].contents() == len(parts)
        assert reader.fields["split.tensors.count"].contents() == len(names)
        assert ("general.architecture" in reader.fields) == (number == 0)
        assert sum(tensor.data.nbytes for tensor in reader.tensors) <= LIMIT or len(reader.tensors) == 1


def test_a_reader_gets_the_same_keys_and_bytes_as_from_one_file(whole: Path, parts: list[Path]) -> None:
    one, several = read_gguf(whole), read_gguf(parts[0])
    assert {k: v for k, v in several.keys.items() if not k.startswith("split.")} == one.keys
    assert several.tensors.keys() == one.tensors.keys()
    for name, tensor in one.tensors.items():
        assert several.read(several.tensors[name], 0, tensor.rows) == one.read(tensor, 0, tensor.rows), name


def test_llama_cpp_loads_the_parts_from_the_first(whole: Path, parts: list[Path]) -> None:
    with LlamaProcess(whole, 32, 1) as llama:
        expected = llama.logits([1, 5, 9])
    with LlamaProcess(parts[0], 32, 1) as llama:
        assert (llama.logits([1, 5, 9]) == expected).all()


def test_a_split_file_is_quantized_as_one(whole: Path, parts: list[Path], tmp_path: Path) -> None:
    made = []
    for source in (whole, parts[0]):
        out = tmp_path / f"of-{source.stem}"
        job = {"source": str(source), "types": ["Q8_0"], "out": str(out), "threads": 1}
        quantize(read_job(json.dumps(job)), lambda _line: None)
        made.append(out / "small-Q8_0.gguf")
    assert made[0].read_bytes() == made[1].read_bytes()


def test_parts_that_are_missing_or_of_another_model_are_named(parts: list[Path], tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match="is file 2 of") as caught:
        read_gguf(parts[1])
    assert str(parts[0]) in caught.value.hint
    kept = parts[1].read_bytes()
    parts[1].unlink()
    with pytest.raises(OperatorError, match=rf"1 of {len(parts)} files are missing: {parts[1].name}"):
        read_gguf(parts[0])
    shutil.copyfile(parts[2], parts[1])
    with pytest.raises(OperatorError, match="another file of a split model than its name"):
        read_gguf(parts[0])
    parts[1].write_bytes(kept[:2000])
    with pytest.raises(OperatorError, match="damaged GGUF file"):
        read_gguf(parts[0])
    renamed = parts[0].rename(tmp_path / "model.gguf")
    with pytest.raises(OperatorError, match="its name does not say so"):
        read_gguf(renamed)


def test_a_file_within_the_limit_stays_one(whole: Path, tmp_path: Path) -> None:
    path = Path(shutil.copyfile(whole, tmp_path / whole.name))
    assert split_larger(path, path.stat().st_size) == [path]
    assert written_parts(path) == [path]


def test_an_export_splits_its_large_files_and_proves_them(base: Path, tmp_path: Path) -> None:
    ctx, result = export(tmp_path, base, "F16", "Q8_0", parity_positions=64, max_shard_size="400KB")
    names = sorted(path.name for path in ctx.out.glob("run-*.gguf"))
    first, *further = sorted(path.name for path in ctx.out.glob("run-F16-*.gguf"))
    assert first == f"run-F16-00001-of-{len(further) + 1:05d}.gguf"
    assert further
    assert not (ctx.out / "run-F16.gguf").exists()
    record = {item["file_type"]: item for item in parity(ctx)["files"]}
    assert record["F16"]["file"] == first
    assert record["F16"]["size_bytes"] == sum(path.stat().st_size for path in ctx.out.glob("run-F16-*.gguf"))
    card = (ctx.out / "README.md").read_text()
    assert [part["file"] for part in record["F16"]["parts"]] == further
    for part in record["F16"]["parts"]:
        assert part["sha256"] == file_sha256(ctx.out / part["file"])
        assert part["sha256"] in card
    assert {artifact.path for artifact in result.artifacts} >= set(names)
    assert f"-m {first}" in (ctx.out / "llama.cpp.txt").read_text()


@pytest.mark.parametrize(
    ("text", "size"), [("50GB", 50 * 10**9), ("2GiB", 2 * 1024**3), ("1.5 mb", 1_500_000), ("400KB", 400_000)]
)
def test_a_size_is_read_as_transformers_reads_it(text: str, size: int) -> None:
    assert shard_bytes(text) == size


@pytest.mark.parametrize("wrong", ["", "50", "50 G", "-1GB", "1e9", "0GB", "GB", "1" * 40 + "GB"])
def test_what_is_no_size_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match="max_shard_size — not a size"):
        ExportStage.model_validate({"name": "x", "kind": "export", "model": "m", "max_shard_size": wrong})


def test_parity_names_a_tensor_of_a_type_that_cannot_be_read_before_anything_is_loaded(
    whole: Path, tmp_path: Path
) -> None:
    data = bytearray(whole.read_bytes())
    name = b"blk.0.ffn_up.weight"
    place = data.index(name) + len(name)
    dimensions = int.from_bytes(data[place : place + 4], "little")
    place += 4 + 8 * dimensions
    data[place : place + 4] = (250).to_bytes(4, "little")
    (tmp_path / "odd.gguf").write_bytes(data)
    job = {"model": str(tmp_path), "files": [str(tmp_path / "odd.gguf")], "threads": 1}
    with pytest.raises(OperatorError, match=r"1 tensors have .* blk\.0\.ffn_up\.weight has type 250; allowed F32"):
        compare_runtimes(parity_job(json.dumps(job)), lambda _line: None)


def test_parity_compares_a_split_file_with_its_model(base: Path, parts: list[Path]) -> None:
    job = {"model": str(base), "files": [str(parts[0])], "threads": 1, "positions": 40}
    report = compare_runtimes(parity_job(json.dumps(job)), lambda _line: None)
    assert report["passed"], report["files"][0]["problems"]
    assert report["files"][0]["bytes"]["tensors"] == len(read_gguf(parts[0]).tensors)
