"""Every kind of data and base model that people bring, and the test that shows what is right for it.

The kinds are those of faults that were reported to other trainers. Each has a test that makes its own input; this table
holds them together, so that none is lost when tests are moved.
"""

from __future__ import annotations

import ast
import functools
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[2]
DOOR, CONTAINERS = "engines/data/test_door.py", "engines/data/test_door_containers.py"
PLACES = "engines/data/test_door_places.py"
READERS, ODD = "engines/data/test_readers.py", "engines/data/test_odd_files.py"
LABELS, LOOK = "engines/labels/test_labels.py", "engines/look/test_stage_look.py"
MODELS = "cockpit/planning/test_model_check.py"

KINDS: dict[str, tuple[str, str]] = {
    "plain rows of messages": (LOOK, "test_rows_tokens_and_the_trained_share_are_counted"),
    "ShareGPT": (DOOR, "test_each_shape_is_found_and_read"),
    "Alpaca with null as its input": (DOOR, "test_each_shape_is_found_and_read"),
    "byte-order mark, CRLF, blank lines, U+2028": (ODD, "test_one_row_is_read_however_its_line_ends_and_begins"),
    "one JSON array named jsonl": (CONTAINERS, "test_a_json_array_may_be_named_jsonl_and_an_object_may_fill_a_file"),
    "a file without the name of a split": (PLACES, "test_a_folder_of_splits_and_a_folder_of_rows"),
    "an answer of weight 0": (LABELS, "test_an_answer_of_weight_zero_is_never_scored"),
    "calls of tools beside a null content": (DOOR, "test_tool_calls_have_one_form_however_they_are_written"),
    "a call of a tool as the last turn": (LABELS, "test_a_call_of_a_tool_as_the_last_turn_is_scored"),
    "reasoning of several turns": (LABELS, "test_reasoning_is_scored_where_the_template_keeps_it_and_its_loss_is_said"),
    "an empty think block of the template": (
        LABELS,
        "test_an_empty_think_block_is_not_scored_unless_requested_and_is_said",
    ),
    "a system turn that the template refuses": (
        LABELS,
        "test_a_template_that_refuses_a_row_is_quoted_with_the_rows_place",
    ),
    "two user turns in a row for a template that refuses them": (
        LABELS,
        "test_turns_that_a_template_wants_in_alternation_are_refused_in_its_words",
    ),
    "control tokens spelled in a text": (LABELS, "test_control_tokens_spelled_in_a_text_are_text"),
    "HTML with the marks of a SentencePiece model": (LABELS, "test_html_with_the_names_of_control_tokens_stays_text"),
    "prompts longer than max_length": (LOOK, "test_all_rows_too_long_is_a_defect_with_the_longest"),
    "empty answers": (LOOK, "test_each_defect_is_found_with_its_place"),
    "a key that is twice in one object": (LOOK, "test_each_defect_is_found_with_its_place"),
    "Latin-1 in one line": (CONTAINERS, "test_another_encoding_is_refused_by_line_until_the_recipe_names_it"),
    "UTF-16": (CONTAINERS, "test_marks_of_encodings_are_read_and_said"),
    "a row of megabytes": (ODD, "test_a_row_of_many_megabytes_is_a_row"),
    "a row of thousands of turns": (
        "engines/labels/test_long_conversations.py",
        "test_its_probes_are_asked_for_in_several_requests",
    ),
    "content as a list of parts": (DOOR, "test_each_shape_is_found_and_read"),
    "chosen and rejected": (DOOR, "test_preferences_are_read_and_a_stage_that_wants_conversations_refuses_them"),
    "plain text": (LABELS, "test_a_text_is_one_document_in_windows_and_every_token_is_scored"),
    "prompt and completion": (DOOR, "test_each_shape_is_found_and_read"),
    "an end token that also pads": (LABELS, "test_the_end_is_scored_also_where_the_end_token_pads"),
    "a base model without a chat template": (
        "engines/finetune/test_added_tokens.py",
        "test_a_base_without_template_is_trained_merged_and_exported_with_real_tokens",
    ),
    "a template that ends the whole conversation once": (
        LABELS,
        "test_a_template_that_ends_the_whole_conversation_scores_both_answers",
    ),
    "a pad token without a row in the embedding": (LOOK, "test_each_defect_is_found_with_its_place"),
    "a base model of 4 bits": (MODELS, "test_a_folder_that_training_could_not_use_is_refused_at_its_line"),
    "an adapter as the base model": (MODELS, "test_a_folder_that_training_could_not_use_is_refused_at_its_line"),
    "a base model with a weight that is not a number": (
        "engines/training/test_steps.py",
        "test_a_base_model_with_a_weight_that_is_not_a_number_stops_and_saves_nothing_healthy",
    ),
    "a base model whose weights are a pickle": (
        "engines/training/test_hostile_models.py",
        "test_a_base_model_whose_weights_are_a_pickle_runs_nothing",
    ),
    "fused projections": (MODELS, "test_any_names_that_the_model_has_are_targets"),
    "a bad row behind many good ones": (
        LOOK,
        "test_large_data_is_labelled_in_part_read_further_and_that_is_reported",
    ),
    "a bad row of the held-out split": (LOOK, "test_a_bad_row_of_the_val_split_is_found_too"),
    "Parquet": (CONTAINERS, "test_every_container_gives_the_same_rows"),
    "the same rows in every format": (
        "engines/labels/test_formats.py",
        "test_the_same_rows_have_the_same_ids_and_labels_in_every_format",
    ),
}


@functools.cache
def functions(file: str) -> frozenset[str]:
    tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_data_has_a_test(kind: str) -> None:
    file, name = KINDS[kind]
    assert name in functions(file)
