"""What quantization usually costs, by file type: traffic lights for measured files. Needs neither torch nor numpy."""

from __future__ import annotations

REFERENCE_KL = {
    "Q8_0": 0.001355, "Q6_K": 0.005452, "Q5_K_M": 0.010762, "Q5_K_S": 0.016595, "Q5_0": 0.022239, "Q4_K_M": 0.031273,
    "Q4_K_S": 0.043136, "IQ4_NL": 0.035742, "IQ4_XS": 0.036334, "Q4_0": 0.071940, "Q3_K_M": 0.101913, "IQ3_S": 0.111278,
    "IQ3_XXS": 0.183625, "Q2_K": 0.445132, "IQ2_XS": 0.546290, "IQ2_XXS": 0.812022,
}  # fmt: skip
"""Mean KL of Llama 3 8B's files on Wikitext-2, from llama.cpp's tools/perplexity/README.md (IQ types with its importance
matrix, the others without): what a type usually costs. Smaller and shorter-trained models lose less."""
YELLOW, RED = 1.0, 3.0
"""Multiples of the reference at which a quantized file is worth a look, and at which it is not what its type should be."""


def light_of(file_type: str, mean_kl: float) -> str | None:
    """green, yellow or red against what the type costs elsewhere; None for a type without a reference value."""
    reference = REFERENCE_KL.get(file_type)
    if reference is None:
        return None
    if not mean_kl <= reference * RED:
        return "red"
    return "green" if mean_kl <= reference * YELLOW else "yellow"
