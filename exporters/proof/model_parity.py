"""Compares any GGUF files with a Hugging Face model folder: bytes, meaning, token ids, distributions."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.data.tokenizer_class import check_tokenizer_class
from engines.files import file_sha256
from engines.llama.gguf_file import part_paths, read_gguf
from engines.llama.job_lines import Send
from engines.llama.library import NativeError
from engines.llama.process import LlamaProcess
from exporters.gguf.importance import load_importance
from exporters.gguf.vocab import Vocabulary
from exporters.gguf.write import Model, read_model
from exporters.hf_model.architectures import exact_context
from exporters.hf_model.family import Architecture
from exporters.hf_model.model_folder import open_weights, read_settings
from exporters.process.room import check_memory
from exporters.prompts.effective_tokens import answer_ends
from exporters.proof.audit import Proofs, prove
from exporters.proof.behaviour import behaviour_record, check_behaviour, expect, limits_of
from exporters.proof.byte_proof import ByteProver
from exporters.proof.fixture import Fixture, answers, fixture_prompts, protocol_of, strings_of
from exporters.proof.inference import opening_ids, prompts_of
from exporters.proof.parity import Reference, compare_each
from exporters.proof.parity_data import ParityData, read_parity_data
from exporters.proof.quality import quality_record
from exporters.proof.token_check import TokenCheck, check_tokens
from exporters.reference.needed_memory import reference_bytes
from exporters.reference.streamed_model import StreamedModel
from recipes.file_types import file_type_of_id
from recipes.problems import OperatorError, printable
from recipes.stages.export import ByteProof

MAX_LENGTH = 256


@dataclass
class ModelCheck:
    """The comparison of one file with its model.

    Attributes:
        proofs: None for a family that the audit does not support.
        tokens: the comparison of token ids; None, as the next two, for a file that llama.cpp cannot run.
        behaviour: the record of `exporters.proof.behaviour`.
        quality: the record of `exporters.proof.quality`.
    """

    file_type: str
    proofs: Proofs | None
    tokens: TokenCheck | None = None
    behaviour: dict[str, Any] | None = None
    quality: dict[str, Any] | None = None
    problems: list[str] = field(default_factory=list)

    def record(self) -> dict[str, Any]:
        """Plain values."""
        found: dict[str, Any] = {"file_type": self.file_type}
        if self.proofs is not None:
            found |= self.proofs.record()
        if self.tokens is not None:
            found |= {"tokenizer": asdict(self.tokens), "behaviour": self.behaviour, "quality": self.quality}
        return found


def check_model(
    folder: Path,
    files: Sequence[Path],
    work: Path,
    send: Send,
    *,
    positions: int,
    data: Path | None,
    threads: int,
    rows: ByteProof = "all",
    imatrix: Path | None = None,
) -> tuple[Fixture, dict[Path, ModelCheck]]:
    """Compare files with a model, and make the model's fixture.

    Args:
        folder: the model, as `save_pretrained` writes it.
        files: GGUF files.
        work: a folder for the model's distributions.
        send: takes phases, progress and warnings.
        positions: token positions that are compared.
        data: held-out text; by default Python's standard library.
        threads: CPU threads.
        rows: which rows of every tensor are compared byte for byte.
        imatrix: the importance matrix that the files were quantized with.

    Raises:
        OperatorError: the folder or a file cannot be read, or the model in float32 does not fit into memory.
        NativeError: llama.cpp cannot load a file.
    """
    from transformers import AutoTokenizer

    config = read_settings(folder)
    model = _model_of(folder, config)
    check_memory(reference_bytes(model.weights, config, positions, MAX_LENGTH))
    send({"phase": f"loading {folder.name}"})
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        network = StreamedModel(folder, model.weights, threads)
    except (OSError, ValueError, KeyError) as error:
        raise OperatorError(f"--model — transformers cannot load {folder}: {error}") from error
    for warning in check_tokenizer_class(folder, tokenizer):
        send({"warning": warning})
    length = min(MAX_LENGTH, exact_context(config))
    text = read_parity_data(data, tokenizer, positions=positions, max_length=length)
    total, done = text.positions * (1 + 2 * len(files)), 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        send({"progress": {"share": done / total, "left_s": None}})

    reference = Reference(work / "reference.f32", text.windows, int(config["vocab_size"]))
    send({"phase": f"asking transformers on {text.positions} positions"})
    reference.compute(network, advance)
    stops = answer_ends(folder, config, tokenizer)
    prompts = prompts_of(text.windows, length, cut_after=opening_ids(tokenizer))
    asked = fixture_prompts(prompts, text.windows, length)
    vocabulary = int(config["vocab_size"])
    found = answers(network, tokenizer, asked, stops, lambda rows: _scratch(work / "answers.f32", rows, vocabulary))
    expected = _Expected(folder, model, tokenizer, text, reference, length, threads, work)
    with ByteProver(threads, rows=rows) as prover:
        importance = load_importance(imatrix).values if imatrix is not None else None
        proofs = {path: _prove(path, expected, prover, importance, send) for path in files}
    checks = {path: _check(path, proofs[path], expected, send, advance) for path in files}
    described = [
        {
            "file": path.name,
            "file_type": checks[path].file_type,
            "bytes": sum(part.stat().st_size for part in part_paths(path)),
            "sha256": file_sha256(path),
        }
        for path in files
    ]
    versions = {name: importlib.metadata.version(name) for name in ("transformers", "torch")}
    protocol = protocol_of(stops, {**versions, "dtype": "float32"})
    return Fixture(_facts(folder, config), protocol, found, strings_of(tokenizer), described), checks


@dataclass(frozen=True)
class _Expected:
    """The model's distributions, and the text that they belong to."""

    folder: Path
    model: Model
    tokenizer: Any
    text: ParityData
    reference: Reference
    length: int
    threads: int
    work: Path


def _prove(
    path: Path,
    given: _Expected,
    prover: ByteProver,
    importance: Mapping[str, NDArray[np.float32]] | None,
    send: Send,
) -> Proofs | None:
    """Bytes and meaning of one file; None for an unsupported family."""
    send({"phase": f"proving the bytes of {path.name}"})
    total, done = sum(t.rows * t.columns for t in read_gguf(path).tensors.values()), 0

    def advance(values: int) -> None:
        nonlocal done
        done += values
        send({"progress": {"share": min(1.0, done / total), "left_s": None}})

    try:
        proofs = prove(path, given.folder, prover, importance=importance, tokenizer=given.tokenizer, progress=advance)
    except KeyError:
        names = given.model.config.get("architectures")
        send({"warning": f"{path.name} is not audited: unsupported architecture {names}"})
        return None
    for note in proofs.bytes.notes:
        send({"warning": f"{path.name}: {note}"})
    return proofs


def _check(
    path: Path, proofs: Proofs | None, given: _Expected, send: Send, advance: Callable[[int], None]
) -> ModelCheck:
    """Compare one file; a file that cannot be run keeps what its proofs found."""
    try:
        return _check_file(path, proofs, given, send, advance)
    except (NativeError, OperatorError, KeyError, ValueError) as error:
        if proofs is None or not proofs.findings:
            raise
        why = f"its behaviour was not compared: {printable(str(error), 300)}"
        return ModelCheck(_file_type(path), proofs, problems=[*proofs.findings, why])


def _check_file(
    path: Path, proofs: Proofs | None, given: _Expected, send: Send, advance: Callable[[int], None]
) -> ModelCheck:
    folder, config = given.folder, given.model.config
    file_type = _file_type(path)
    send({"phase": f"asking transformers with the weights of {path.name}"})
    expected = expect(path, given.model, given.reference, given.work / "own.f32", given.threads, advance)
    send({"phase": f"comparing {path.name} with {folder.name}"})
    with LlamaProcess(path, given.length, given.threads) as llama:
        if llama.vocab_size != int(config["vocab_size"]):
            raise OperatorError(f"{path} has {llama.vocab_size} tokens, but {folder} has {config['vocab_size']}")
        tokens = check_tokens(given.tokenizer, llama, given.text, answer_ends(folder, config, given.tokenizer))
        for warning in tokens.warnings():
            send({"warning": f"{path.name}: {warning}"})
        own, total = compare_each([expected.reference, given.reference], llama, advance)
    limits = limits_of(file_type, expected)
    differences = check_behaviour(own, limits)
    weights_kl = given.reference.mean_kl(expected.reference) if expected.weights == "file" else None
    return ModelCheck(
        file_type,
        proofs,
        tokens,
        behaviour_record(own, expected, limits, differences),
        quality_record(file_type, total, weights_kl),
        [*(proofs.findings if proofs is not None else []), *tokens.problems(), *differences],
    )


def _scratch(path: Path, positions: int, vocabulary: int) -> NDArray[np.float32]:
    return np.memmap(path, np.float32, "w+", shape=(positions, vocabulary))


def _model_of(folder: Path, config: dict[str, Any]) -> Model:
    """The model with the GGUF names of its tensors; without names for a family that Cockpit does not convert."""
    try:
        return read_model(folder)
    except OperatorError:
        weights = open_weights(folder)
        name = str((config.get("architectures") or ["unknown"])[0])
        vocabulary = Vocabulary("unknown", "unknown", [], [], special={})
        return Model(folder, config, Architecture(name, (), ()), weights, vocabulary, {}, [])


def _file_type(path: Path) -> str:
    """The name of the file's `general.file_type`; "unknown" for an unknown number or none."""
    number = read_gguf(path).scalar("general.file_type")
    row = file_type_of_id(number) if isinstance(number, int) else None
    return row.name if row is not None else "unknown"


def _facts(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    sha256 = file_sha256(folder / "config.json")
    name = (config.get("architectures") or ["unknown"])[0]
    return {"name": folder.name, "architecture": name, "config_sha256": sha256, "vocab_size": int(config["vocab_size"])}
