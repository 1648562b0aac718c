"""The tokenizer and the rules by which a stage labels rows, from the files of a model folder alone."""

from __future__ import annotations

from pathlib import Path

from engines.json_text import read_object
from engines.labels.row import LabelRules
from engines.labels.stage_rows import rules_of
from engines.labels.templates import chosen_template
from engines.labels.vocabulary import Vocabulary, view_of_folder
from recipes.stages.evaluate import EvaluateStage
from recipes.stages.finetune import FinetuneFields

TOKENIZER_JSON = "tokenizer.json"


def view_and_rules(
    stage: FinetuneFields | EvaluateStage, folder: Path, moment: str = ""
) -> tuple[Vocabulary, LabelRules]:
    """What the stage's engine labels rows with; control tokens that a training adds are in the view too.

    `moment` is as in `LabelRules`.

    Raises:
        OperatorError: a file of the tokenizer is missing or damaged, or there is no such chat template.
    """
    rules = rules_of(stage, stage.max_length, moment)
    chosen = chosen_template(stage.chat_template)
    if chosen is None or isinstance(stage, EvaluateStage):
        return view_of_folder(folder), rules
    return view_of_folder(folder, chosen.text, chosen.marks, chosen.end), rules


def embedding_rows(folder: Path) -> int:
    """Rows of a model's embedding by its config.json; 0 if that has no number."""
    config = read_object(folder / "config.json") if (folder / "config.json").is_file() else {}
    for table in (config, config.get("text_config")):
        rows = table.get("vocab_size") if isinstance(table, dict) else None
        if isinstance(rows, int) and not isinstance(rows, bool) and rows > 0:
            return rows
    return 0
