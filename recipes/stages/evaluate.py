"""The evaluate stage."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import ClassVar, Literal, Self

from pydantic import model_validator

from recipes.problems import closest
from recipes.setting import setting
from recipes.stages.data_fields import DATASET, READ_METRICS, DataFields
from recipes.stages.fields import DeviceFields
from recipes.stages.kind import TRAIN, StageKind
from recipes.stages.label_fields import LABEL_METRICS, LabelFields
from recipes.stages.launch.fields import DDP, SINGLE, LaunchFields

TRIES = (1, 5, 10, 100)
"""Numbers of tries whose pass@k is measured, besides the number of answers."""
HOW_TO_HAVE_LM_EVAL = (
    "make an environment for it (python3 -m venv ENVIRONMENT), install it there (ENVIRONMENT/bin/python -m pip install"
    " 'lm_eval[hf]'), and set lm_eval_python to ENVIRONMENT/bin/python; or remove lm_eval_tasks"
)
"""What an operator does where lm_eval is missing."""
RESULTS_JSON = "results.json"
"""The results of a stage's tests, in its output; those of a GGUF file have its file type in their name."""
STAGE_CHECKS = (
    "exact", "normalized", "contains", "number", "choice", "json", "python", "tool_call", "command", "judge",
)  # fmt: skip
"""Checks that a stage may give to rows that name none: those that need no setting of the row."""
CHECKS_WITH_SETTING = ("regex", "json_schema")
"""Those that it may give with their setting: regex=PATTERN, json_schema=JSON."""
LOSS_METRICS = ("loss", "perplexity")
"""The metrics of the data, of the model and of each file."""
TEST_METRICS = (
    "success", "success_low", "success_high", "test_rows", "unjudged_rows", "valid_json", "ended", "answer_tokens",
    "answer_tokens_p95", "latency_mean_s", "latency_p50_s", "latency_p95_s", "latency_max_s", "first_token_p50_s",
    "answer_tokens_per_second", "distinct_1", "distinct_2", "repetition", "peak_rss_bytes", "peak_vram_bytes",
    "size_bytes",
)  # fmt: skip
"""The metrics of a stage with test rows."""
PAIR_METRICS = (
    "baseline_success", "difference", "difference_low", "difference_high", "p_value", "won_rows", "lost_rows",
    "forgetting", "forgetting_low", "forgetting_high",
    "unpaired_rows", "same_answers", "latency_difference_s", "latency_difference_low_s", "latency_difference_high_s",
)  # fmt: skip
"""Those of a stage that compares with a baseline."""


class EvaluateStage(DeviceFields, DataFields, LabelFields, LaunchFields):
    """Token-weighted loss and perplexity on held-out data, and greedy answers to a few questions."""

    strategies: ClassVar[tuple[str, ...]] = (SINGLE, DDP)

    kind: Literal["evaluate"] = "evaluate"
    model: str = setting(
        section="Inputs", accepts=("model", "adapter"), help="The model or adapter: a stage, a folder, or a hub id."
    )
    data: str = setting(
        section="Inputs",
        accepts=("messages", "text", "tokens", DATASET),
        help="The messages, texts or tokens to evaluate on: a stage, a file, a folder, or the id of a dataset in the"
        " hub cache.",
    )
    split: Literal["train", "val", "test"] = setting("test", section="Evaluation", help="Split to evaluate on.")
    max_length: int = setting(
        512,
        section="Evaluation",
        ge=8,
        unit="tokens",
        help="Longest sequence; longer rows are left out, cut or refused, and counted.",
    )
    max_tokens: int = setting(
        200_000,
        section="Evaluation",
        ge=1,
        unit="tokens",
        help="Stop after this many scored tokens. Of messages and texts, these are the first rows of the split.",
    )
    max_tokens_from: Literal["start", "spread"] = setting(
        "start",
        section="Evaluation",
        help="Of a folder of tokens that has more than max_tokens: score the first ones of the split, or windows at"
        " equal distances from the whole split. The first ones may all be of one source.",
    )
    per_device_eval_batch_size: int = setting(8, section="Evaluation", ge=1, help="Sequences per forward pass.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = setting(
        "auto", section="Evaluation", help="Type of the weights; auto is the one that the model's files have."
    )
    load_in_4bit: bool = setting(
        False,
        section="Evaluation",
        help="Load the base model of an adapter in 4 bits, as its training did; otherwise in its own type.",
    )
    answers: int = setting(
        0, section="Answers", ge=0, le=1000, help="Number of questions from the split to answer with greedy decoding."
    )
    max_new_tokens: int = setting(48, section="Answers", ge=1, unit="tokens", help="Maximum length of an answer.")
    test_data: str | None = setting(
        None,
        section="Tests",
        accepts=("messages",),
        help="Test rows that the model answers and checks judge: a file, or a prepare stage with messages, whose split"
        " is used.",
    )
    tests: Literal["rows", "probe", "general"] = setting(
        "rows",
        section="Tests",
        help="Which tests: the rows of test_data; the fact probe that a messages stage wrote beside its splits; or the"
        " general questions that Cockpit ships, which show what a training made a model forget and need no test_data.",
    )
    checks: list[str] = setting(
        default_factory=list,
        section="Tests",
        suggests=STAGE_CHECKS,
        help="Checks of test rows that name none, such as number, exact, regex=PATTERN or json_schema=JSON; every one"
        " must pass.",
    )
    baseline: str | None = setting(
        None,
        section="Tests",
        accepts=("report",),
        help="Results of another model on the same test rows, to compare with by rows: an evaluate stage, or a results"
        " file.",
    )
    files: str | None = setting(
        None,
        section="Tests",
        accepts=("gguf",),
        help="An export whose GGUF files are evaluated too, on the data and on the test rows; their metrics end in the"
        " file type, such as perplexity.Q4_K_M and success.Q4_K_M. Each adapter of the export is also evaluated over"
        " each file: success.Q4_K_M+NAME.",
    )
    answer_batch_size: int = setting(
        1,
        section="Tests",
        ge=1,
        help="Test rows that the model answers together; times are those of requests in such a batch.",
    )
    temperature: float = setting(
        0.0,
        section="Sampling",
        ge=0,
        le=100,
        help="Answers to test rows are drawn at this temperature; 0 takes the likeliest token each time.",
    )
    top_p: float = setting(
        1.0, section="Sampling", gt=0, le=1, help="Draw from the likeliest tokens that have this probability together."
    )
    top_k: int = setting(0, section="Sampling", ge=0, help="Draw from this number of likeliest tokens; 0 for all.")
    sampling_seed: int = setting(
        0, section="Sampling", ge=0, le=2**32 - 1, help="Seed of the answers; each row draws numbers of its own."
    )
    num_return_sequences: int = setting(
        1,
        section="Sampling",
        ge=1,
        le=1000,
        help="Answers to each test row, for pass@k; more than one needs a temperature.",
    )
    allow_code_execution: bool = setting(
        False,
        section="Tests",
        help="Run the code of answers against the unit tests of test rows, confined: without network, other files or"
        " other processes.",
    )
    code_timeout_s: int = setting(
        10,
        section="Tests",
        ge=1,
        le=3600,
        unit="seconds",
        help="Processor time of each program that unit tests run; it may take three times as long by the clock.",
    )

    lm_eval_tasks: list[str] = setting(
        default_factory=list,
        section="lm_eval",
        help="Tasks of the program lm_eval, by its own names, such as hellaswag; each metric is lm_eval.TASK.METRIC.",
    )
    lm_eval_python: str | None = setting(
        None,
        section="lm_eval",
        help="Python interpreter that has lm_eval with torch and transformers; by default, the stage's own.",
    )
    lm_eval_include_path: str | None = setting(
        None, section="lm_eval", folder=True, help="Folder with more tasks, as YAML files of lm_eval."
    )
    lm_eval_num_fewshot: int | None = setting(
        None, section="lm_eval", ge=0, help="Examples in each prompt; by default, as each task says."
    )
    lm_eval_limit: int | None = setting(
        None, section="lm_eval", ge=1, unit="rows", help="At most this many rows of each task; by default, all."
    )
    lm_eval_chat_template: bool = setting(
        False, section="lm_eval", help="Write each prompt with the model's chat template."
    )
    judge_command: list[str] = setting(
        default_factory=list,
        section="Judges",
        help="Your program for the check command, with its arguments: it reads JSON on stdin and ends with status 0 for"
        " passed, 1 for failed.",
    )
    judge_url: str | None = setting(
        None,
        section="Judges",
        help="OpenAI-compatible URL of the model for the check judge, such as http://127.0.0.1:8000/v1. It gets every"
        " prompt, expected answer and answer of these rows.",
    )
    judge_model: str = setting("", section="Judges", help="Name of the model at judge_url.")
    judge_key_env: str = setting(
        "",
        section="Judges",
        help="Environment variable with the key for judge_url; the key itself is written nowhere.",
    )
    judge_rubric: str = setting(
        "",
        section="Judges",
        help="How the judge scores from 1 to 10; by default, how well the answer solves the task.",
    )

    @model_validator(mode="after")
    def _tests_are_whole(self) -> Self:
        for one in self.checks:
            _check_of_a_file(one)
        names = ("checks", "baseline", "allow_code_execution", "judge_command", "judge_url")
        alone = [name for name in names if getattr(self, name)]
        if self.tests == "probe":
            alone.append("tests")
        if alone and not self.has_tests:
            raise ValueError(f"{alone[0]} — applies to test rows; got no test_data; set test_data, or remove it")
        if self.tests == "general" and self.test_data is not None:
            raise ValueError(
                'test_data — tests = "general" asks the questions that Cockpit ships; got both; remove one of them'
            )
        return self

    @model_validator(mode="after")
    def _lm_eval_is_whole(self) -> Self:
        names = ("python", "include_path", "num_fewshot", "limit", "chat_template")
        given = next((name for name in names if getattr(self, f"lm_eval_{name}") not in (None, False)), None)
        if given and not self.lm_eval_tasks:
            raise ValueError(
                f"lm_eval_{given} — applies to lm_eval_tasks; got no task; set lm_eval_tasks, or remove it"
            )
        for one in self.lm_eval_tasks:
            if not _LM_EVAL_TASK.fullmatch(one):
                raise ValueError(
                    f"lm_eval_tasks — not the name of a task; got {one!r:.60}; allowed: letters, digits and _-./+"
                )
        return self

    @model_validator(mode="after")
    def _sampling_is_whole(self) -> Self:
        usual = {"top_p": 1.0, "top_k": 0, "num_return_sequences": 1}
        given = next((name for name, value in usual.items() if getattr(self, name) != value), None)
        if given and self.temperature == 0:
            raise ValueError(f"{given} — applies to drawn answers; got temperature 0; set it, or remove {given}")
        if self.temperature and not self.has_tests:
            raise ValueError("temperature — applies to test rows; got no test_data; set test_data, or remove it")
        if self.num_return_sequences > 1 and self.baseline is not None:
            raise ValueError(
                "baseline — compares one answer to each prompt; got num_return_sequences"
                f" {self.num_return_sequences}; remove one of them"
            )
        return self

    @model_validator(mode="after")
    def _judges_are_whole(self) -> Self:
        for check, field in (("command", "judge_command"), ("judge", "judge_url")):
            if check in self.checks and not getattr(self, field):
                raise ValueError(f"checks — {check} needs {field}; got none; set {field}, or remove {check}")
        for name in ("judge_model", "judge_key_env", "judge_rubric"):
            if getattr(self, name) and self.judge_url is None:
                raise ValueError(f"{name} — applies to judge_url; got none; set judge_url, or remove {name}")
        if self.judge_url is not None and not self.judge_model:
            raise ValueError("judge_model — required with judge_url; got nothing; allowed: the model's name there")
        if self.judge_key_env and not _VARIABLE.fullmatch(self.judge_key_env):
            raise ValueError(
                f"judge_key_env — not the name of an environment variable; got {self.judge_key_env!r:.20}; allowed:"
                " letters, digits and _"
            )
        return self

    def launch_problems(self) -> Iterator[str]:
        """What several processes do not evaluate."""
        if self.launch.world_size > 1 and self.lm_eval_tasks:
            yield (
                f"lm_eval_tasks — lm_eval is one program, which several processes do not divide; got"
                f" {self.launch.world_size} processes; allowed: a stage of its own in one process"
            )

    @property
    def has_tests(self) -> bool:
        """Whether the model answers test rows."""
        return self.test_data is not None or self.tests == "general"


_LM_EVAL_TASK = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./+-]{0,199}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")


def _check_of_a_file(text: str) -> None:
    """Refuse a check of a whole file.

    Raises:
        ValueError: no check has this name, or its setting cannot be used.
    """
    name, given, value = text.partition("=")
    if given and name in CHECKS_WITH_SETTING:
        try:
            re.compile(value) if name == "regex" else json.loads(value)
        except (re.error, ValueError, RecursionError, OverflowError) as error:
            raise ValueError(f"checks — {name} cannot be used: {error}; got {value!r:.60}") from error
        return
    if text in STAGE_CHECKS:
        return
    with_setting = "regex=PATTERN, json_schema=JSON"
    near = closest(text, STAGE_CHECKS)
    raise ValueError(
        f"checks — no such check of a whole file; got {text!r:.60}; allowed: {', '.join(STAGE_CHECKS)}, {with_setting}"
        + (f"; {near}" if near else "")
    )


def _metrics(stage: EvaluateStage) -> tuple[str, ...]:
    found = (*LOSS_METRICS, "tokens_per_second", "truncated", *LABEL_METRICS, *READ_METRICS)
    of_tests: tuple[str, ...] = TEST_METRICS if stage.has_tests else ()
    if stage.has_tests and stage.num_return_sequences > 1:
        tries = {*(count for count in TRIES if count <= stage.num_return_sequences), stage.num_return_sequences}
        of_tests = (*of_tests, *(f"pass_at_{count}" for count in sorted(tries)))
    if stage.has_tests and stage.baseline is not None:
        of_tests = (*of_tests, *PAIR_METRICS)
    of_lm_eval = ("lm_eval.*",) if stage.lm_eval_tasks else ()
    of_files = tuple(f"{name}.*" for name in (*LOSS_METRICS, *of_tests)) if stage.files is not None else ()
    return (*found, *of_tests, *of_lm_eval, *of_files)


EVALUATE = StageKind(
    kind="evaluate",
    types={"report": EvaluateStage},
    module="engines.evaluate.stage",
    needs=lambda stage: TRAIN if stage.files is None else (*TRAIN, "xllamacpp"),
    metrics=_metrics,
    scores=True,
    same_shape_as="model",
)
