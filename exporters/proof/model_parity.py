"""Compares any GGUF files with a Hugging Face model folder: bytes, meaning, token ids, distributions."""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from engines.data.tokenizer_class import check_tokenizer_class
from engines.files import file_sha256
from engines.llama.gguf_file import read_gguf
from engines.llama.process import LlamaProcess
from exporters.hf_model.architectures import exact_context
from exporters.hf_model.model_folder import read_settings
from exporters.process.job_lines import Send
from exporters.process.room import check_memory
from exporters.prompts.effective_tokens import answer_ends
from exporters.proof.audit import Proofs, prove
from exporters.proof.byte_proof import ByteProver
from exporters.proof.fixture import Fixture, answer, fixture_prompts, protocol_of, strings_of
from exporters.proof.inference import LIMIT, opening_ids, prompts_of
from exporters.proof.parity import Comparison, Reference, check_limits, compare
from exporters.proof.parity_data import ParityData, read_parity_data
from exporters.proof.quality import light_of
from exporters.proof.reference_model import TorchLogits, load_reference
from exporters.proof.token_check import TokenCheck, check_tokens
from recipes.file_types import file_type_of_id
from recipes.problems import OperatorError
from recipes.stages.export import ByteProof

MAX_LENGTH = 256


@dataclass
class ModelCheck:
    """The comparison of one file with its model. `proofs` is None for a family that the audit does not support."""

    file_type: str
    proofs: Proofs | None
    tokens: TokenCheck
    comparison: Comparison
    problems: list[str] = field(default_factory=list)

    def record(self) -> dict[str, Any]:
        """Plain values."""
        loss = self.comparison.loss
        return {
            "file_type": self.file_type,
            **(self.proofs.record() if self.proofs is not None else {}),
            "tokenizer": asdict(self.tokens),
            **self.comparison.record(),
            "perplexity": math.exp(min(loss, 700.0)),
            "light": light_of(self.file_type, self.comparison.mean_kl),
        }


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

    Raises:
        OperatorError: the folder or a file cannot be read, or the model in float32 does not fit into memory.
        NativeError: llama.cpp cannot load a file.
    """
    from transformers import AutoTokenizer

    config = read_settings(folder)
    check_memory(_float_bytes(folder))
    send({"phase": f"loading {folder.name}"})
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = load_reference(folder, threads)
    except (OSError, ValueError, KeyError) as error:
        raise OperatorError(f"--model — transformers cannot load {folder}: {error}") from error
    for warning in check_tokenizer_class(folder, tokenizer):
        send({"warning": warning})
    length = min(MAX_LENGTH, exact_context(config))
    text = read_parity_data(data, tokenizer, positions=positions, max_length=length)
    total, done = text.positions * (1 + len(files)), 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        send({"progress": {"share": done / total, "left_s": None}})

    reference = Reference(work / "reference.f32", text.windows, int(config["vocab_size"]))
    send({"phase": f"asking transformers on {text.positions} positions"})
    reference.compute(TorchLogits(model), advance)
    stops = answer_ends(folder, config, tokenizer)
    prompts = prompts_of(text.windows, length, cut_after=opening_ids(tokenizer))
    asked = fixture_prompts(prompts, text.windows, length)
    answers = [answer(model, tokenizer, ids, LIMIT, stops) for ids in asked]
    del model
    expected = _Expected(folder, config, tokenizer, text, reference, length, threads)
    with ByteProver(threads, rows=rows) as prover:
        proofs = {path: _prove(path, folder, config, prover, send) for path in files}
    checks = {path: _check_file(path, proofs[path], expected, send, advance) for path in files}
    described = [
        {
            "file": path.name,
            "file_type": checks[path].file_type,
            "bytes": path.stat().st_size,
            "sha256": file_sha256(path),
        }
        for path in files
    ]
    versions = {name: importlib.metadata.version(name) for name in ("transformers", "torch")}
    protocol = protocol_of(stops, {**versions, "dtype": "float32"})
    return Fixture(_facts(folder, config), protocol, answers, strings_of(tokenizer), described), checks


@dataclass(frozen=True)
class _Expected:
    """The model's distributions, and the text that they belong to."""

    folder: Path
    config: dict[str, Any]
    tokenizer: Any
    text: ParityData
    reference: Reference
    length: int
    threads: int


def _prove(path: Path, folder: Path, config: dict[str, Any], prover: ByteProver, send: Send) -> Proofs | None:
    """Bytes and meaning of one file; None for an unsupported family."""
    send({"phase": f"proving the bytes of {path.name}"})
    total, done = sum(t.rows * t.columns for t in read_gguf(path).tensors.values()), 0

    def advance(values: int) -> None:
        nonlocal done
        done += values
        send({"progress": {"share": min(1.0, done / total), "left_s": None}})

    try:
        proofs = prove(path, folder, prover, progress=advance)
    except KeyError:
        send({"warning": f"{path.name} is not audited: unsupported architecture {config.get('architectures')}"})
        return None
    for note in proofs.bytes.notes:
        send({"warning": f"{path.name}: {note}"})
    return proofs


def _check_file(
    path: Path, proofs: Proofs | None, expected: _Expected, send: Send, advance: Callable[[int], None]
) -> ModelCheck:
    folder, config = expected.folder, expected.config
    send({"phase": f"comparing {path.name} with {folder.name}"})
    file_type = _file_type(path)
    found = proofs.findings if proofs is not None else []
    with LlamaProcess(path, expected.length, expected.threads) as llama:
        if llama.vocab_size != int(config["vocab_size"]):
            raise OperatorError(f"{path} has {llama.vocab_size} tokens, but {folder} has {config['vocab_size']}")
        tokens = check_tokens(expected.tokenizer, llama, expected.text, answer_ends(folder, config, expected.tokenizer))
        for warning in tokens.warnings():
            send({"warning": f"{path.name}: {warning}"})
        comparison = compare(expected.reference, llama, advance)
    problems = [*found, *tokens.problems(), *check_limits(file_type, comparison)]
    if not math.isfinite(comparison.mean_kl):
        problems.append("mean KL is not finite")
    return ModelCheck(file_type, proofs, tokens, comparison, problems)


def _file_type(path: Path) -> str:
    """The name of the file's `general.file_type`; "unknown" for an unknown number or none."""
    number = read_gguf(path).scalar("general.file_type")
    row = file_type_of_id(number) if isinstance(number, int) else None
    return row.name if row is not None else "unknown"


def _facts(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    sha256 = file_sha256(folder / "config.json")
    name = (config.get("architectures") or ["unknown"])[0]
    return {"name": folder.name, "architecture": name, "config_sha256": sha256, "vocab_size": int(config["vocab_size"])}


def _float_bytes(folder: Path) -> int:
    """Maximum size of the model in float32: twice the size of its files."""
    return 2 * sum(file.stat().st_size for file in folder.glob("*.safetensors"))
