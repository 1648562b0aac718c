"""Checks that an adapter belongs to a base model: by the base model's content, its revision, and its tokenizer."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from engines.artifacts.adapter_folder import ADAPTER_CONFIG, BASE_JSON
from engines.artifacts.manifest import MANIFEST, ManifestError, manifest_sha256
from engines.files import read_regular_bytes
from engines.inputs.hub_cache import commit_of
from engines.json_text import read_json, read_object
from recipes.problems import OperatorError, printable

_FOUR_BIT = re.compile(r"(-unsloth)?(-bnb)?-4bit$|-(bnb-?8bit|8bit|gptq|awq|int4|nf4|fp8)$|-(gptq|awq)-", re.IGNORECASE)
"""Ends of hub names of quantized copies of a model."""
_ITS_BASE = "merge it into the base model that it was trained on"
_COMMIT = re.compile(r"[0-9a-f]{40}")


def check_base(
    base: Path, base_sha256: str | None, adapter_folder: Path, *, beside: str = "", base_rounding: str | None = None
) -> list[str]:
    """Refuse a base model that the adapter was not trained on.

    Args:
        base: the base model's folder.
        base_sha256: its identity, when known: the SHA-256 of its manifest or of its contents.
        adapter_folder: the adapter, whose base.json has the identity of its base model.
        beside: the name of an adapter that stays a file of its own, and is not merged.
        base_rounding: how a merge stage rounds the base before it adds the adapter; None for another kind of stage.

    Returns:
        Warnings: what could not be checked, and what an operator should know about the pair.

    Raises:
        OperatorError: they do not belong together; the message has what each says.
    """
    _check_revision(base, adapter_folder)
    return [
        *_check_content(base, base_sha256, adapter_folder),
        *_check_tokenizers(base, adapter_folder),
        *_trained_over(base, adapter_folder, beside, base_rounding),
    ]


def quantization_of_base(adapter_folder: Path) -> dict[str, Any] | None:
    """How the training of an adapter loaded its base model in 4 bits, by its base.json; None if it did not."""
    record = adapter_folder / BASE_JSON
    found = read_object(record).get("quantization") if record.is_file() else None
    return found if isinstance(found, dict) else None


def refuse_quantized_name(name: str, adapter_folder: Path) -> None:
    """Refuse the hub id of a quantized base model before it is downloaded, if the adapter alone names it.

    Raises:
        OperatorError: the adapter was trained over this quantized copy; the message has what to name instead.
    """
    if name == _settings(adapter_folder).get("base_model_name_or_path") and _FOUR_BIT.search(name):
        raise OperatorError(
            f"model — got {printable(name)}, the quantized copy that the adapter was trained over; allowed the 16- or "
            "32-bit model",
            f"name it: --model {printable(_FOUR_BIT.sub('', name))}, or its folder",
        )


def _settings(adapter_folder: Path) -> dict[str, Any]:
    try:
        value = read_json(adapter_folder / ADAPTER_CONFIG)
    except (OSError, ValueError):
        return {}  # `read_adapter` reports it
    return value if isinstance(value, dict) else {}


def _check_content(base: Path, base_sha256: str | None, adapter_folder: Path) -> list[str]:
    record = adapter_folder / BASE_JSON
    named = read_object(record) if record.is_file() else {}
    wanted = named.get("manifest_sha256")
    if "method" not in named and not (base / MANIFEST).is_file():
        wanted = None  # an older version identified a foreign folder by the times of its files
    if base_sha256 is None:
        try:
            base_sha256 = manifest_sha256(base)
        except ManifestError:
            base_sha256 = None
    if not wanted or not base_sha256:
        reason = f"{base} has no manifest" if wanted else "the adapter does not name the content of its base model"
        return [f"{reason}: could not check that the adapter was trained on this base model"]
    if wanted != base_sha256:
        raise OperatorError(
            f"the adapter was trained on another base model: it names SHA-256 {printable(str(wanted))}, but {base} "
            f"has {base_sha256}",
            f"{_ITS_BASE} ({printable(str(named.get('path', 'unknown')), 200)})",
        )
    return []


def _check_revision(base: Path, adapter_folder: Path) -> None:
    """Compare the revision that PEFT recorded with that of a base model in the hub's cache (`…/snapshots/COMMIT`)."""
    settings = _settings(adapter_folder)
    wanted, named = settings.get("revision"), str(settings.get("base_model_name_or_path") or "")
    home = next((path for path in base.absolute().parents if path.name.startswith("models--")), None)
    if not isinstance(wanted, str) or not wanted or home is None:
        return
    given = base.absolute().relative_to(home).parts[-1]
    same_model = home.name == f"models--{named.replace('/', '--')}"
    commit = commit_of(home, wanted) if same_model or _COMMIT.fullmatch(wanted) else ""
    if commit and commit != given:
        pinned = f"{home.name.removeprefix('models--').replace('--', '/')}@{commit}"
        raise OperatorError(
            f"{adapter_folder} was trained on revision {printable(wanted, 60)} ({commit[:12]}) of "
            f"{printable(named, 200) or 'its base model'}, but the base model is revision {printable(given, 12)}",
            f"download that revision (cockpit pull {printable(pinned, 300)}) and name it so",
        )


def _trained_over(base: Path, adapter_folder: Path, beside: str, base_rounding: str | None) -> list[str]:
    """What the adapter's settings say of a quantized copy that it was trained over, unless the base is rounded so."""
    quantization = quantization_of_base(adapter_folder)
    if quantization is not None:
        rounding = "nf4-double" if quantization.get("bnb_4bit_use_double_quant") is True else "nf4"
        kind = printable(str(quantization.get("bnb_4bit_quant_type")), 20)
        if beside:
            return [
                f"{printable(beside, 60)} was trained over {base} in 4 bits ({kind}), and a runtime applies it to"
                " weights that differ by that rounding: its metrics kl_to_trained say how much that changes"
            ]
        if base_rounding == rounding and kind == "nf4":
            return []
        way = f"base_rounding = {rounding} rounds the base as in training"
        way = f"a merge stage with {way}" if base_rounding is None else way
        weights = "16- or 32-bit weights" if base_rounding in (None, "none") else f"weights rounded to {base_rounding}"
        return [
            f"the adapter was trained over {base} in 4 bits ({kind if kind != 'nf4' else rounding}) and is added to its"
            f" {weights}, which differ by that rounding: kl_to_trained says how much that changes"
            + (f"; {way}" if kind == "nf4" else "")
        ]
    named = _settings(adapter_folder).get("base_model_name_or_path")
    quantized = isinstance(named, str) and _FOUR_BIT.search(named) is not None
    if not quantized and base_rounding not in (None, "none") and (adapter_folder / BASE_JSON).is_file():
        return [
            f"base_rounding = {base_rounding} rounds a base over which the adapter was not trained in 4 bits: "
            'base_rounding = "none" keeps the weights that it was trained over'
        ]
    if not isinstance(named, str) or not quantized or base_rounding not in (None, "none"):
        return []
    return [
        f"the adapter was trained over {printable(named, 200)}, a quantized copy of its base model, and is added to "
        f"the weights of {base}, which differ by that rounding: evaluate the merged model, and one with "
        "base_rounding = nf4"
    ]


def _check_tokenizers(base: Path, adapter_folder: Path) -> list[str]:
    """Compare the tokenizers, if both folders have one: a token must have the same id. Tokens that were added or
    renamed by hand (a chat template's marks) give a warning."""
    expected, found = base / "tokenizer.model", adapter_folder / "tokenizer.model"
    if expected.is_file() and found.is_file() and read_regular_bytes(expected) != read_regular_bytes(found):
        raise OperatorError(f"{found} differs from {expected}: their token ids mean different text", _ITS_BASE)
    expected, found = base / "tokenizer.json", adapter_folder / "tokenizer.json"
    if not expected.is_file() or not found.is_file():
        return []
    ours, theirs = _tokens(expected), _tokens(found)
    differing = sorted(index for index in ours.keys() & theirs.keys() if ours[index][0] != theirs[index][0])
    if not differing:
        return []
    ordinary = [index for index in differing if not ours[index][1] and not theirs[index][1]]
    first = ordinary[0] if ordinary else differing[0]
    words = f"token {first} is {_shown(theirs[first][0])} in {found} and {_shown(ours[first][0])} in {expected}"
    if ordinary:
        raise OperatorError(f"{words} ({len(ordinary)} tokens differ): their token ids mean different text", _ITS_BASE)
    return [f"{words}; the merged model has the adapter's tokenizer"]


def _shown(token: str) -> str:
    return f"'{printable(token, 40)}'"


def _tokens(path: Path) -> dict[int, tuple[str, bool]]:
    """Each id's token, and whether it is an added one."""
    tokenizer = read_object(path)
    try:
        vocabulary = tokenizer["model"]["vocab"]
        pairs = (
            vocabulary.items()
            if isinstance(vocabulary, dict)
            else ((entry[0], index) for index, entry in enumerate(vocabulary))
        )
        found = {int(index): (str(token), False) for token, index in pairs}
        added = {int(item["id"]): (str(item["content"]), True) for item in tokenizer.get("added_tokens") or []}
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise OperatorError(f"{path} is not a tokenizer: {printable(str(error), 200)}") from error
    return found | added
