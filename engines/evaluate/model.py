"""Load the model to evaluate: a model folder, an adapter on its base model, or a model in the local hub cache. It never
uses the network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from engines.artifacts.adapter_folder import ADAPTER_CONFIG, ADAPTER_WEIGHTS, BASE_JSON, is_adapter
from engines.artifacts.generation_config import end_ids, read_generation_config
from engines.artifacts.manifest import MANIFEST, manifest_sha256
from engines.artifacts.sharded import refuse_shards
from engines.artifacts.weight_types import refuse_whole_numbers
from engines.data.tokenizer_class import check_tokenizer_class
from engines.evaluate.four_bits import OTHER_BASE, is_over_four_bits, keep_layout, quantization_as_trained
from engines.exhausted_memory import exhausted_memory
from engines.files import refuse_special_files
from engines.json_text import read_object
from engines.labels.vocabulary import Vocabulary, view_of
from engines.machine.returned_memory import copies_returned
from engines.run_dir.moved_runs import place_now
from engines.training.inputs import (
    cached_folder,
    not_loaded,
    refuse_missing_weights,
    refuse_other_shapes,
    tensor_types,
)
from recipes.problems import OperatorError, printable

Warn = Callable[[str], None]


@dataclass(frozen=True)
class LoadedModel:
    """A loaded model, in evaluation mode on its device.

    `tokenizer_folders` are the folders in which its tokenizer's files lie, the first that has one decides.
    """

    model: Any
    tokenizer: Any
    tokenizer_folders: tuple[Path, ...]

    @cached_property
    def view(self) -> Vocabulary:
        """The tokenizer as labels need it."""
        return view_of(self.tokenizer)


def load_model(
    path: Path | None, name: str, warn: Warn = lambda _text: None, *, dtype: str = "auto", load_in_4bit: bool = False
) -> LoadedModel:
    """Load a model or an adapter.

    Args:
        path: a model folder or an adapter folder; None for a hub id.
        name: the hub id, used without a folder.
        warn: takes what the operator should know.
        dtype: type of the weights: float32, bfloat16 or float16; auto for the one that the files have.
        load_in_4bit: load the base model of an adapter in 4 bits, as its training did.

    Raises:
        OperatorError: it is not cached, not a model, or an adapter whose base model is missing or has changed; or its
            tokenizer gives text other ids than its tokenizer.json.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()  # the caller says what it loads
    folder = path or cached_folder(name)
    quantization = quantization_as_trained(folder) if load_in_4bit else None
    if is_adapter(folder):
        if quantization is None and is_over_four_bits(folder):
            warn(f"{printable(str(folder), 400)}: {OTHER_BASE}")
        return _load_adapter(folder, warn, dtype, quantization)
    return _finished(_pretrained(folder, dtype), load_tokenizer(folder, warn), (folder,))


def base_of(adapter: Path) -> Path:
    """The folder of the base model that an adapter was trained on.

    Raises:
        OperatorError: the base model is missing, not cached, or not the one that the adapter was trained on.
    """
    file = adapter / BASE_JSON
    if not file.is_file():
        config = read_object(adapter / ADAPTER_CONFIG)
        named = str(config.get("base_model_name_or_path") or "")
        return Path(named) if Path(named).is_dir() else cached_folder(named)
    base = read_object(file)
    if not isinstance(base.get("path"), str):
        raise OperatorError(
            f"{file}: path — missing", "set path to the base model's folder, or train the adapter again"
        )
    path = place_now(Path(base["path"]), adapter)
    if not path.is_dir():
        if path.is_absolute():
            raise OperatorError(
                f"{path}, the base model of {adapter}, does not exist", "restore it, or train the adapter again"
            )
        return cached_folder(base["path"])
    expected = base.get("manifest_sha256")
    named_manifest = base.get("method") != "content"
    if expected and named_manifest and (path / MANIFEST).is_file() and manifest_sha256(path) != expected:
        raise OperatorError(
            f"{path} is not the base model that {adapter} was trained on: its manifest differs",
            "restore the base model, or train the adapter again on this one",
        )
    return path


def _load_adapter(path: Path, warn: Warn, dtype: str, quantization: Any) -> LoadedModel:
    from peft import PeftModel  # takes seconds to import; a model without an adapter does not need it

    base = base_of(path)
    refuse_special_files(path)
    whole = _pretrained(base, dtype, quantization)
    try:
        rows = _embedding_rows(path)
        if rows > whole.get_input_embeddings().weight.shape[0]:
            whole.resize_token_embeddings(rows, mean_resizing=False)
        model = PeftModel.from_pretrained(whole, path)
    except Exception as error:  # libraries raise anything for a damaged adapter
        if exhausted_memory(error):
            raise
        raise not_loaded(path, "an adapter", error) from error
    _add_ends(model, path)
    tokenizer_folder = path if (path / "tokenizer_config.json").is_file() else base
    return _finished(model, load_tokenizer(tokenizer_folder, warn), (path, base))


def _embedding_rows(adapter: Path) -> int:
    """Rows of the embedding in an adapter whose training resized the vocabulary; 0 for other adapters."""
    file = adapter / ADAPTER_WEIGHTS
    if not file.is_file():
        return 0
    with safe_open(file, "pt") as tensors:
        names = [name for name in tensors.keys() if "embed_tokens" in name and name.endswith(".weight")]  # noqa: SIM118
        return max((tensors.get_slice(name).get_shape()[0] for name in names if "lora_" not in name), default=0)


def _add_ends(model: Any, adapter: Path) -> None:
    """Let answers end at the adapter's end tokens too: those of its training, where its base model has others."""
    known = end_ids({"eos_token_id": model.generation_config.eos_token_id})
    ends = list(dict.fromkeys([*known, *end_ids(read_generation_config(adapter))]))
    if ends:
        model.generation_config.eos_token_id = ends


def _pretrained(folder: Path, dtype: str, quantization: Any = None) -> Any:
    from transformers import AutoModelForCausalLM

    refuse_special_files(folder)
    refuse_shards(folder)
    try:
        with copies_returned(quantizes=quantization is not None):
            model, found = AutoModelForCausalLM.from_pretrained(
                folder,
                local_files_only=True,
                dtype=dtype,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are refused by name
                **({} if quantization is None else {"quantization_config": quantization}),
            )
    except Exception as error:  # libraries raise anything for a damaged model
        if isinstance(error, OperatorError) or exhausted_memory(error):
            raise
        if quantization is None or not isinstance(error, ImportError | RuntimeError):
            raise not_loaded(folder, "a model", error) from error
        raise OperatorError(
            f"load_in_4bit — bitsandbytes cannot quantize {folder} here: {printable(str(error), 300)}",
            "install a bitsandbytes that supports this machine (pip install bitsandbytes), or leave it out",
        ) from error
    keep_layout(model)
    refuse_whole_numbers(folder, tensor_types(folder))
    refuse_other_shapes(folder, found["mismatched_keys"])
    refuse_missing_weights(folder, found["missing_keys"])
    return model


def load_tokenizer(folder: Path, warn: Warn) -> Any:
    """The tokenizer of a folder.

    Raises:
        OperatorError: it cannot be loaded, or gives text other ids than its tokenizer.json.
    """
    from transformers import AutoTokenizer

    refuse_special_files(folder)
    try:
        found = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # tokenizers raises plain exceptions
        if exhausted_memory(error):
            raise
        raise not_loaded(folder, "a tokenizer", error) from error
    for warning in check_tokenizer_class(folder, found):
        warn(warning)
    return found


def _finished(model: Any, tokenizer: Any, tokenizer_folders: tuple[Path, ...]) -> LoadedModel:
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    model.eval()
    return LoadedModel(model, tokenizer, tokenizer_folders)
