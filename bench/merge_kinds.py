"""`python -m bench.merge_kinds`: merges every kind of adapter with Cockpit and with PEFT, and compares the results.

With float32 base models the two should be equal. With bfloat16 base models the reference is the formula in float32,
rounded once. PEFT adds in bfloat16, so its own distance is shown, for adapters in float32 (its default) and bfloat16.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

from exporters.lora.merge import merge
from tests.exporters.lora.adapting import adapt, distance, ours, peft_weights
from tests.exporters.lora.test_merge_kinds import KINDS
from tests.exporters.small_models import build_model, build_tokenizer

TITLES = (
    "adapter",
    "head",
    "F32: Cockpit to PEFT",
    "BF16: Cockpit to the formula",
    "BF16: PEFT to the formula",
    "PEFT, BF16 adapter",
)
_FIGURE = "largest distance of one weight"


def main() -> int:
    """Print one table; `--write` keeps it as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path, help="also write the table here, as Markdown")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        words = build_tokenizer(_made(root / "words"))
        for tied in (True, False):
            folders = {
                dtype: build_model(
                    root / f"{dtype}-{tied}",
                    words,
                    hidden_size=64,
                    intermediate_size=96,
                    tie_word_embeddings=tied,
                    dtype=dtype,
                )
                for dtype in ("float32", "bfloat16")
            }
            for number, (kind, settings) in enumerate(KINDS.items()):
                place = _made(root / f"{number}-{tied}")
                rows.append([kind, "tied" if tied else "own", *_measured(place, folders, settings)])
                sys.stderr.write(".")
                sys.stderr.flush()
    lines = [" | ".join(row) for row in ([*TITLES], ["---"] * len(TITLES), *rows)]
    text = "".join(f"| {line} |\n" for line in lines)
    sys.stdout.write("\n" + text)
    if args.write:
        note = (
            f"Each figure is the {_FIGURE}, after the merge; two-layer Llama models, `python -m bench.merge_kinds`.\n\n"
        )
        args.write.write_text(note + text)
    return 0


def _measured(place: Path, folders: dict[str, Path], settings: dict[str, Any]) -> list[str]:
    """The four distances of one kind."""
    exact = peft_weights(adapt(place / "a32", folders["float32"], **settings))
    merge(folders["float32"], [(place / "a32", 1.0)], _made(place / "m32"))
    found = [distance(ours(place / "m32"), exact)]
    half = peft_weights(adapt(place / "a16", folders["bfloat16"], **settings))
    formula = {name: _rounded(value) for name, value in half.items()}
    merge(folders["bfloat16"], [(place / "a16", 1.0)], _made(place / "m16"))
    found.append(distance(ours(place / "m16"), formula))
    base, adapter = folders["bfloat16"], place / "a16"
    found += [distance(_peft_in_bfloat16(base, adapter, settings, float32=keep), formula) for keep in (True, False)]
    return [f"{value:.2g}" for value in found]


def _rounded(value: Any) -> Any:
    import torch

    return value.to(torch.bfloat16).float()


def _peft_in_bfloat16(base: Path, adapter: Path, settings: dict[str, Any], *, float32: bool) -> dict[str, Any]:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    if "vocab" in settings:
        model.resize_token_embeddings(settings["vocab"], mean_resizing=False)
    adapted = PeftModel.from_pretrained(model, adapter, autocast_adapter_dtype=float32)
    return {name: value.float() for name, value in adapted.merge_and_unload().state_dict().items()}


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


if __name__ == "__main__":
    raise SystemExit(main())
