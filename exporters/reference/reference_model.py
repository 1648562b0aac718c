"""A whole model in memory, in transformers and float32, where an adapter over its base model is the reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.json_text import read_object
from exporters.hf_model.architectures import known_architecture, language_settings
from exporters.hf_model.families.llama import LLAMA
from exporters.hf_model.tensor_files import SafetensorsFolder, Weights


def load_reference(
    folder: Path,
    threads: int,
    *,
    adapter: Path | None = None,
    vocab_size: int | None = None,
    weights: Weights | None = None,
) -> Any:
    """Load a model in evaluation mode.

    Args:
        folder: its config and tokenizer, and its weights unless they are given.
        threads: CPU threads.
        adapter: a PEFT adapter that is applied to it, not merged.
        vocab_size: of the adapter, if its training resized the vocabulary.
        weights: its tensors, if the folder does not contain them: adapters merged while they are read.
    """
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.set_num_threads(threads)
    if weights is None or isinstance(weights, SafetensorsFolder):
        model = model_class(folder).from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager", local_files_only=True
        )
    else:
        model = _assembled(folder, weights)
    if adapter is not None:
        from peft import PeftModel

        if vocab_size not in (None, model.get_input_embeddings().num_embeddings):
            model.resize_token_embeddings(vocab_size, mean_resizing=False)
        model = PeftModel.from_pretrained(model, adapter)
    model.eval()
    return model


def model_class(folder: Path) -> Any:
    """transformers' automatic class that loads a model for text: that of language models, or else of images and text.

    Raises:
        OSError: the folder has no config.
        ValueError: transformers does not have the model's type.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    return AutoModelForCausalLM if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING else AutoModelForImageTextToText


def _assembled(folder: Path, weights: Weights) -> Any:
    """A model of the folder's config, filled tensor by tensor."""
    import torch
    from transformers import AutoConfig
    from transformers.initialization import no_init_weights

    settings = read_object(folder / "config.json")
    tied = language_settings(settings)["tie_word_embeddings"]
    family = known_architecture(settings) or LLAMA
    stored = {family.own_name(name): name for name in weights.tensors}
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    with no_init_weights():
        model = model_class(folder).from_config(config, dtype=torch.float32, attn_implementation="eager")
    places = model.state_dict()
    left_out = {name for name in places if family.left_out_of(name) is not None}  # texts do not need them
    missing = set(places) - set(stored) - left_out - ({family.head} if tied else set())
    if missing:
        raise AssertionError(f"no values for {sorted(missing)[:3]}")
    with torch.no_grad():
        for name, place in places.items():
            if name in stored:
                place.copy_(torch.from_numpy(weights.read(stored[name])))
    model.tie_weights()
    return model


class TorchLogits:
    """The logits of a transformers model."""

    def __init__(self, model: Any) -> None:
        """`model` from `load_reference`."""
        self._model = model

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Logits after each token of one sequence, float32 [tokens, vocab_size]."""
        import torch

        with torch.inference_mode():
            row: NDArray[np.float32] = self._model(torch.tensor([list(ids)]), use_cache=False).logits[0].float().numpy()
        return row

    def logits_into(
        self, windows: Sequence[Sequence[int]], out: NDArray[np.float32], progress: Callable[[int], None]
    ) -> None:
        """Logits after each token of every window, into float32 [positions, vocab_size]."""
        start = 0
        for window in windows:
            out[start : start + len(window)] = self.logits(window)
            start += len(window)
            progress(len(window))
