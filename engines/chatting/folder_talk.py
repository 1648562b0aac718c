"""A model folder, or an adapter over its base model, that talks: transformers, one token after another."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from engines.chatting.lines import Sampling
from engines.chatting.talk import Show, Stopped
from engines.evaluate.folder_answers import FolderAnswers
from engines.evaluate.model import LoadedModel
from engines.judging.task import Message, Task
from engines.stage_file import present_moment


class _StoppedError(Exception):
    """The operator stopped the answer while a layer was about to compute."""


class _Pass(StoppingCriteria):
    """Gives each new token to `show`, and ends the answer when it was stopped."""

    def __init__(self, show: Show, stopped: Stopped) -> None:
        self._show, self._stopped = show, stopped

    def __call__(self, input_ids: torch.Tensor, _scores: Any, **_more: Any) -> torch.Tensor:
        self._show(int(input_ids[0, -1]))
        return torch.full((1,), self._stopped(), dtype=torch.bool, device=input_ids.device)


class FolderTalk:
    """Answers of a loaded model; prompts are encoded as an evaluation encodes them."""

    runtime = "transformers"

    def __init__(self, loaded: LoadedModel, *, template: str = "", plain: bool = False) -> None:
        """Make a model ready.

        Args:
            loaded: the model.
            template: the text of a chat template; empty for the tokenizer's.
            plain: prompts are texts to continue.
        """
        self.plain = plain
        self._answers = FolderAnswers(
            loaded, sha256="", size_bytes=0, limit=1, template=template, plain=plain, moment=present_moment()
        )
        self._model, self._tokenizer = loaded.model, loaded.tokenizer
        self._stopped: Stopped = lambda: False
        self.context, self.ends = self._answers.longest, self._answers.ends
        self.dtype = str(self._answers.identity["dtype"])
        self.has_adapter = hasattr(self._model, "disable_adapter")
        for layer in _layers(self._model):
            layer.register_forward_pre_hook(self._before_a_layer)

    @property
    def workers(self) -> tuple[int, ...]:
        """As `Talk.workers`."""
        return (os.getpid(),)

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """As `Talk.encode`."""
        return self._answers.encode(Task("", "the conversation", tuple(messages), "", ()))

    def decode(self, ids: Sequence[int]) -> str:
        """As `Talk.decode`."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    @torch.no_grad()
    def generate(self, ids: list[int], sampling: Sampling, *, adapter: bool, show: Show, stopped: Stopped) -> None:
        """As `Talk.generate`."""
        torch.manual_seed(sampling.seed)
        prompt = torch.tensor([ids], device=self._model.device)
        without = self.has_adapter and not adapter
        off: AbstractContextManager[Any] = self._model.disable_adapter() if without else nullcontext()
        self._stopped = stopped
        try:
            with off:
                self._model.generate(
                    input_ids=prompt,
                    attention_mask=torch.ones_like(prompt),
                    generation_config=self._settings(sampling),
                    stopping_criteria=StoppingCriteriaList([_Pass(show, stopped)]),
                )
        except _StoppedError:
            pass
        finally:
            self._stopped = lambda: False

    def close(self) -> None:
        """Nothing to end: the model lives in this process."""

    def _settings(self, sampling: Sampling) -> GenerationConfig:
        chosen: dict[str, Any] = {"do_sample": False}
        if sampling.temperature > 0:
            chosen = {
                "do_sample": True,
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "top_k": sampling.top_k,
            }
        ends = self._model.generation_config
        return GenerationConfig(
            max_new_tokens=sampling.max_new_tokens,
            repetition_penalty=sampling.repetition_penalty,
            eos_token_id=ends.eos_token_id,
            pad_token_id=ends.pad_token_id,
            **chosen,
        )

    def _before_a_layer(self, *_call: Any) -> None:
        """A long prompt computes for minutes on a CPU, so it can be stopped between layers."""
        if self._stopped():
            raise _StoppedError


def _layers(model: nn.Module) -> Sequence[nn.Module]:
    """The model's layers: its longest list of modules."""
    lists = [list(module) for module in model.modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=len, default=[])
