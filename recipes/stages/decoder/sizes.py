"""The sizes of a dense decoder and what follows from them alone: its matrices, its parameters, its operations."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from recipes.stages.decoder.model_types import MODEL_TYPES, ModelType

FEED_FORWARD = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Sizes:
    """A decoder with gated feed-forward layers, as its config.json names its sizes."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    tie_word_embeddings: bool = False
    model_type: ModelType = "llama"

    @property
    def queries(self) -> int:
        """Width of all query heads together."""
        return self.num_attention_heads * self.head_dim

    @property
    def keys(self) -> int:
        """Width of all key heads together."""
        return self.num_key_value_heads * self.head_dim

    @property
    def linear(self) -> Mapping[str, tuple[int, int]]:
        """Inputs and outputs of a layer's matrices."""
        width, inner = self.hidden_size, self.intermediate_size
        return {
            "q_proj": (width, self.queries),
            "k_proj": (width, self.keys),
            "v_proj": (width, self.keys),
            "o_proj": (self.queries, width),
            "gate_proj": (width, inner),
            "up_proj": (width, inner),
            "down_proj": (inner, width),
        }

    @property
    def linear_parameters(self) -> int:
        """Parameters of the matrices of all layers."""
        return self.num_hidden_layers * sum(map(math.prod, self.linear.values()))

    @property
    def embeddings(self) -> int:
        """Parameters of the embedding and of a head of its own."""
        return self.vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2)

    @property
    def parameters(self) -> int:
        """All parameters, with the norms of the model type."""
        vectors = sum(getattr(self, width) for width in MODEL_TYPES[self.model_type].norms.values())
        return self.linear_parameters + self.embeddings + self.num_hidden_layers * int(vectors) + self.hidden_size

    @property
    def multiplied(self) -> int:
        """Parameters of the matrices that each token is multiplied with; the embedding is looked up, the output head
        is multiplied also where it is the same matrix."""
        return self.linear_parameters + self.vocab_size * self.hidden_size

    def training_operations(self, context: int) -> int:
        """Floating point operations of a trained token, forward and backward.

        6 for each multiplied parameter, and 12 L H Q T for attention over `context` tokens, which does not take into
        account that half of it is masked (PaLM, arXiv 2204.02311, appendix B): the convention of published MFU.
        """
        return 6 * self.multiplied + 12 * self.num_hidden_layers * self.queries * context
