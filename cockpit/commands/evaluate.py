"""`cockpit evaluate`: loss on data, and the tasks of a test file, judged and compared with a baseline.

A child process does the work. Answers are kept as they come: the same command continues after an interruption.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from cockpit.command_line.arguments import add_json, threads
from cockpit.command_line.parser import CommandParser
from cockpit.commands.child_job import follow_job
from cockpit.runs.find import runs_root
from cockpit.talking.model_place import MODEL_HELP, model_place
from cockpit.talking.sampling_options import add_sampling
from cockpit.text import formatting as fmt
from cockpit.text.output import print_json, print_out, say
from cockpit.text.safe_text import error_text, safe_text
from cockpit.text.text_table import text_table
from engines.chatting.lines import Sampling
from engines.files import read_regular_text
from engines.judging.sets.general import GENERAL, general_set
from engines.words import ExitCode
from recipes import quantities
from recipes.problems import OperatorError, printable
from recipes.stages.kind import TRAIN

DEFAULT_LIMIT = 256
DEFAULT_LENGTH = 512
DEFAULT_TOKENS = 200_000
DTYPES = ("auto", "float32", "bfloat16", "float16")
_UNKNOWN_GAP = "the model does not have this token"
_SHOWN_DIFFERENCES = 10
DEFAULT_CODE_TIMEOUT_S = 10
MOST_TEXT_BYTES = 64 * 1024
_TITLES = ("", "success", "95 % interval", "rows", "p50", "p95", "first token", "tokens", "ended")


def declare(parser: CommandParser) -> None:
    """The arguments of `cockpit evaluate`."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        help=MODEL_HELP,
    )
    parser.add_argument(
        "--test-data",
        metavar="FILE",
        help="test rows with checks: JSON Lines or a list; or general, for the questions that Cockpit ships",
    )
    parser.add_argument("--data", metavar="DATA", help="rows, texts or tokens for loss and perplexity")
    parser.add_argument(
        "--output", required=True, metavar="FILE", help="results to write; the answers are kept beside it"
    )
    parser.add_argument("--baseline", metavar="FILE", help="results of another model on the same rows, to compare with")
    parser.add_argument(
        "--explain",
        action="store_true",
        help="with --baseline: where answers first differ, and the gap between the logits of the two tokens",
    )
    parser.add_argument("--adapter", metavar="FILE", help="a GGUF adapter over a GGUF file")
    parser.add_argument(
        "--check",
        action="append",
        default=[],
        metavar="NAME",
        help="check of rows that name none, such as exact, number, json, judge, regex=PATTERN, json_schema=FILE;"
        " repeatable",
    )
    parser.add_argument(
        "--judge", metavar="CMD", help="your program for the check command: JSON on stdin, status 0 passed, 1 failed"
    )
    add_sampling(parser, ("temperature", "top_p", "top_k", "seed"), seed_option="--sampling-seed")
    parser.add_argument(
        "--num-return-sequences", type=_count, default=1, metavar="N", help="answers to each prompt, for pass@k"
    )
    parser.add_argument("--judge-url", metavar="URL", help="OpenAI-compatible URL of a model for the judge check")
    parser.add_argument("--judge-model", default="", metavar="NAME", help="the model's name at --judge-url")
    parser.add_argument(
        "--judge-key-env", default="", metavar="VARIABLE", help="environment variable with the key for --judge-url"
    )
    parser.add_argument("--judge-rubric", metavar="FILE", help="how the judge scores from 1 to 10")
    parser.add_argument(
        "--allow-code-execution",
        action="store_true",
        help="run the code of answers against the rows' unit tests, confined (default: such rows are refused)",
    )
    parser.add_argument(
        "--code-timeout",
        type=_count,
        default=DEFAULT_CODE_TIMEOUT_S,
        metavar="SECONDS",
        help=f"processor time of each such program (default: {DEFAULT_CODE_TIMEOUT_S})",
    )
    add_sampling(parser, ("max_new_tokens",), defaults=Sampling(max_new_tokens=DEFAULT_LIMIT))
    parser.add_argument(
        "--batch", type=_count, default=1, metavar="N", help="prompts a folder answers together (default: 1)"
    )
    parser.add_argument(
        "--max-length",
        type=_count,
        default=DEFAULT_LENGTH,
        metavar="N",
        help=f"for --data: tokens of the longest row; longer ones are left out and counted (default: {DEFAULT_LENGTH})",
    )
    parser.add_argument(
        "--max-tokens",
        type=_many,
        default=DEFAULT_TOKENS,
        metavar="N",
        help=f"for --data: stop after so many scored tokens (default: {DEFAULT_TOKENS})",
    )
    parser.add_argument(
        "--tokenizer",
        metavar="FOLDER",
        help="for --data with a GGUF file: the model folder that it was made from (default: the file's vocabulary)",
    )
    parser.add_argument("--chat-template", metavar="FILE", help="a chat template (default: the model's own)")
    parser.add_argument("--plain", action="store_true", help="prompts are texts to continue, without a chat template")
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default=DTYPES[0],
        help="type of a folder's weights (default: auto, the one that its files have)",
    )
    parser.add_argument(
        "--load-in-4bit",
        action="store_true",
        help="load the base model of an adapter in 4 bits, as its training did (default: its own type)",
    )
    parser.add_argument("--threads", type=threads, metavar="N", help="CPU threads (default: all physical cores)")
    add_json(parser)
    parser.exit_codes = {
        ExitCode.DONE: "every row was scored, or asked and judged, whatever the result",
        ExitCode.FAILED: "the model or a file failed; kept answers stay",
        ExitCode.MISTAKE: "wrong usage, or rows that cannot be used; nothing was asked",
    }
    parser.examples = (
        (
            "cockpit evaluate ./model --test-data gsm.jsonl --check number --output base.json",
            "Evaluate a model folder.",
        ),
        (
            "cockpit evaluate m-Q4_K_M.gguf --test-data gsm.jsonl --check number --baseline base.json --output q4.json",
            "Evaluate a GGUF file and compare it with those results.",
        ),
        (
            "cockpit evaluate m-Q4_K_M.gguf --data val.jsonl --tokenizer ./model --output q4.json",
            "Its loss and perplexity on the rows that the folder is evaluated on.",
        ),
    )


def run(args: argparse.Namespace) -> ExitCode:
    """Evaluate; prints the metrics and the rows that changed."""
    output = Path(args.output).expanduser().absolute()
    if not output.parent.is_dir():
        raise OperatorError(f"--output — no folder {printable(str(output.parent), 400)}", "make it first")
    if not (args.test_data or args.data):
        raise OperatorError("nothing to evaluate on", "give --test-data for answers, --data for loss, or both")
    if args.explain and not (args.baseline and args.test_data):
        raise OperatorError("--explain — compares answers; got no --baseline or no --test-data", "give both")
    job = {
        "model": model_place(args.model, runs_root(args.runs_dir)),
        "adapter": _file(args.adapter, "--adapter"),
        "tests": _tests(args.test_data),
        "output": str(output),
        "baseline": _file(args.baseline, "--baseline"),
        "checks": [_check(text) for text in args.check],
        "command": _command(args.judge),
        "limit": args.max_new_tokens,
        "batch_size": args.batch,
        "threads": args.threads,
        "chat_template": _file(args.chat_template, "--chat-template"),
        "plain": args.plain,
        "dtype": args.dtype,
        "data": _place(args.data, "--data"),
        "tokenizer": _place(args.tokenizer, "--tokenizer"),
        "max_length": args.max_length,
        "max_tokens": args.max_tokens,
        "explain": args.explain,
        "load_in_4bit": args.load_in_4bit,
        "allow_code_execution": args.allow_code_execution,
        "code_timeout_s": args.code_timeout,
        "judge": _judge(args),
        "sampling": _sampling(args),
        "num_return_sequences": args.num_return_sequences,
    }
    live = sys.stderr.isatty() and not args.json
    needs = (*TRAIN, "xllamacpp") if str(job["model"]).endswith(".gguf") else TRAIN
    pace = _Pace()
    return follow_job("engines.evaluate.job", job, lambda line: _show(line, pace, live=live, as_json=args.json), needs)


def _file(given: str | None, option: str) -> str | None:
    if given is None:
        return None
    path = Path(given).expanduser().absolute()
    if not path.is_file():
        raise OperatorError(f"{option} — no file {printable(str(path), 400)}")
    return str(path)


def _tests(given: str | None) -> str | None:
    """The test file; a file of the general set's name comes first."""
    if given == GENERAL and not Path(given).is_file():
        return str(general_set())
    return _file(given, "--test-data")


def _place(given: str | None, option: str) -> str | None:
    """The path of a file or a folder."""
    if given is None:
        return None
    path = Path(given).expanduser().absolute()
    if not path.exists():
        raise OperatorError(f"{option} — no file or folder {printable(str(path), 400)}")
    return str(path)


def _judge(args: argparse.Namespace) -> dict[str, str] | None:
    """The model that judges; None without one."""
    if args.judge_url is None:
        given = [name for name in ("judge_model", "judge_key_env", "judge_rubric") if getattr(args, name)]
        if given:
            raise OperatorError(
                f"--{given[0].replace('_', '-')} — applies to --judge-url; got none", "give --judge-url"
            )
        return None
    found = {"url": args.judge_url, "model": args.judge_model, "key_variable": args.judge_key_env}
    rubric = _file(args.judge_rubric, "--judge-rubric")
    return {**found, "rubric": _text(rubric, "--judge-rubric")} if rubric is not None else found


def _sampling(args: argparse.Namespace) -> dict[str, Any] | None:
    """How answers are drawn; None for greedy ones."""
    usual = {"top_p": 1.0, "top_k": 0, "num_return_sequences": 1}
    given = next((name for name, value in usual.items() if getattr(args, name) != value), None)
    if args.temperature == 0:
        if given:
            raise OperatorError(f"--{given.replace('_', '-')} — applies to drawn answers; got temperature 0")
        return None
    if args.num_return_sequences > 1 and (args.baseline or getattr(args, "explain", False)):
        raise OperatorError("--baseline — compares one answer to each prompt; got several", "give one of them")
    fields = {"temperature": args.temperature, "top_p": args.top_p, "top_k": args.top_k}
    return {**fields, "seed": args.seed}


def _check(text: str) -> str:
    """A check of the whole file; of json_schema=FILE, with the file's content."""
    name, given, value = text.partition("=")
    if not given or name != "json_schema":
        return text
    file = _file(value, "--check json_schema")
    assert file is not None
    return f"{name}={_text(file, '--check json_schema')}"


def _text(file: str, option: str) -> str:
    try:
        return read_regular_text(Path(file), MOST_TEXT_BYTES)
    except (OSError, ValueError) as error:
        name = printable(file, 400)
        raise OperatorError(f"{option} — {name} cannot be read: {printable(str(error), 200)}") from error


def _command(given: str | None) -> list[str]:
    try:
        return shlex.split(given or "")
    except ValueError as error:
        raise OperatorError(f"--judge — not a command: {error}; got {printable(given or '', 100)}") from error


def _count(text: str) -> int:
    return _whole(text, 1_000_000)


def _many(text: str) -> int:
    return _whole(text, 1_000_000_000)


def _whole(text: str, most: int) -> int:
    if not text.isdecimal() or len(text) > 10 or not 1 <= int(text) <= most:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 to {most}; got {text!r:.40}")
    return int(text)


class _Pace:
    """The time that is left of what is counted, from the part that was done since it was first shown."""

    def __init__(self) -> None:
        self._unit, self._begin, self._began_s = "", 0, 0.0

    def left_s(self, done: int, total: int, unit: str, now_s: float) -> float | None:
        """Seconds; None until something was done."""
        if unit != self._unit or done < self._begin:
            self._unit, self._begin, self._began_s = unit, done, now_s
        made = done - self._begin
        return (now_s - self._began_s) / made * (total - done) if made else None


def _show(line: dict[str, Any], pace: _Pace, *, live: bool, as_json: bool) -> None:
    match line:
        case {"error": error, "hint": hint}:
            say(error_text(error, hint), clear=live)
        case {"warning": text}:
            say(f"warning: {safe_text(text, 400)}", clear=live)
        case {"phase": phase} if not as_json:
            say(safe_text(phase, 200), end="" if live else "\n", clear=live)
        case {"progress": {"done": done, "total": total, "unit": unit}} if live:
            left_s = pace.left_s(done, total, unit, time.monotonic())
            left = "" if left_s is None else f", about {fmt.duration(left_s)} left"
            say(f"{done} of {total} {unit}{left}", end="", clear=True)
        case {"result": result}:
            say("", end="", clear=live)
            if as_json:
                print_json(result, flush=True)
            else:
                print_out("\n".join(_lines(result)), flush=True)


def _lines(result: dict[str, Any]) -> list[str]:
    metrics = result["metrics"]
    lines = []
    if "loss" in metrics:
        lines += [
            f"loss {fmt.loss(float(metrics['loss']))}, perplexity {fmt.loss(float(metrics['perplexity']))} on "
            f"{fmt.whole(metrics['scored_tokens'])} tokens: {safe_text(result['protocol']['loss'], 300)}"
        ]
    if result["tests"] is None:
        return lines
    lines += (
        ["", *text_table(_TITLES, [_row(result)], right=range(1, 9))]
        if lines
        else text_table(_TITLES, [_row(result)], right=range(1, 9))
    )
    unjudged = int(metrics["unjudged_rows"])
    if unjudged:
        lines += [
            "",
            f"without a verdict, because a check itself failed: {fmt.counted(unjudged, 'row')}; not counted as passed",
        ]
    if result["comparison"] is not None:
        lines += ["", *_compared(result["comparison"])]
    if result["differences"] is not None:
        lines += ["", *_explained(result["differences"])]
    for name, rows in result["shown"].items():
        if rows:
            lines += ["", f"{name}: {fmt.counted(result['counts'][name], 'row')}"]
            lines += [f"  {safe_text(row['where'], 60)}  {safe_text(row['reason'], 160)}".rstrip() for row in rows]
    return lines


def _row(result: dict[str, Any]) -> list[str]:
    metrics = result["metrics"]
    times = [metrics.get(name) for name in ("latency_p50_s", "latency_p95_s", "first_token_p50_s")]
    return [
        safe_text(Path(result["model"]).name, 40),
        fmt.percent(metrics["success"], 1),
        f"{fmt.percent(metrics['success_low'], 1)} to {fmt.percent(metrics['success_high'], 1)}",
        fmt.whole(metrics["test_rows"]),
        *(fmt.duration(value) for value in times),
        fmt.rate(metrics.get("answer_tokens_per_second")),
        fmt.percent(metrics.get("ended"), 0),
    ]


def _compared(found: dict[str, Any]) -> list[str]:
    ends = f"{quantities.points(found['difference_low'])} to {quantities.points(found['difference_high'])}"
    lines = [
        f"baseline {fmt.percent(found['baseline_success'], 1)} on the same {found['rows']} rows: "
        f"{quantities.points(found['difference'])} points (95 %: {ends}), p = {fmt.number(found['p_value'], 2)}",
        f"won {len(found['won'])}, lost {len(found['lost'])}",
    ]
    if found["same_answers"] is not None:
        lines.append(f"the same answer to {fmt.percent(found['same_answers'], 1)} of the rows")
    apart = found["only_model"] + found["only_baseline"]
    if apart:
        named = ", ".join(safe_text(where.rpartition("/")[2], 60) for where in found["unpaired"])
        lines.append(
            f"warning: {apart} rows are only in one of the two, not compared ({found['only_model']} of the model,"
            f" {found['only_baseline']} of the baseline): {named}"
        )
    if found["other_expected"]:
        lines.append(f"warning: {found['other_expected']} of them have the same prompt and another expected answer")
    return lines


def _explained(differences: list[dict[str, Any]]) -> list[str]:
    """Where answers first differ from the baseline's."""
    gaps = sorted(abs(one["gap"]) for one in differences if one["gap"] is not None)
    lines = [f"other tokens than the baseline's: {fmt.counted(len(differences), 'answer')}"]
    if gaps:
        middle, largest = fmt.number(gaps[len(gaps) // 2], 2), fmt.number(gaps[-1], 2)
        lines[0] += f"; the two logits at the first difference are {middle} apart in the median, at most {largest}"
    shown = sorted(differences, key=lambda one: -abs(one["gap"] or 0))[:_SHOWN_DIFFERENCES]
    for one in shown:
        gap = _UNKNOWN_GAP if one["gap"] is None else f"gap {fmt.number(one['gap'], 3)}"
        if not (one["model"] and one["baseline"]):
            gap = "the shorter one reached its end"
        tokens = " | ".join(repr(safe_text(one[side], 40)) for side in ("model", "baseline"))
        lines.append(f"  {safe_text(one['name'], 60)}  token {one['at']}: {tokens}  {gap}")
    return lines
