"""`python -m bench.evaluation`: two tasks before and after a LoRA, on every form of the model; one table.

The forms are the folder, the adapter over its base, and GGUF files. Each answers the same held-out rows through
`cockpit evaluate`. Greedy answers of the F16 file are compared with those of the folder, token by token: where they
first differ, the table has the gap of the two logits. A loop written here judges the folder again.

`--math` has rows of GSM8K: `question`, and `answer` with calculations as `<<48/2=24>>` and a number after ####. A model
of this size answers hardly any of them, so each row asks for the first calculation of its answer, and its result after
####. `--jobs` is a folder of JSON Lines with `messages` whose answers fit `--schema`. The same run asks the general
questions before and after the training. Everything is kept in `--work`, so that an interrupted measurement continues.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.run_dir.paths import RunDir

TYPES = ("F16", "Q8_0", "Q4_K_M")
LONGEST_CHARACTERS = 150
"""Of a question of math: rows that a small machine trains on."""
FIRST_STEP = "\nGive the first step of the calculation, and its result after ####."
HAND_ROWS = 8
"""Rows that the loop written here answers: one prompt at a time, without a cache of answers."""
MATH, OBJECTS = "math", "json"


@dataclass(frozen=True)
class Form:
    """One form of the model before or after the training, and what its answers are compared with."""

    name: str
    model: str
    options: tuple[str, ...] = ()
    baseline: str = ""


def main() -> int:
    """Measure, and print the tables in Markdown."""
    parser = argparse.ArgumentParser(prog="python -m bench.evaluation", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="a model folder with a chat template")
    parser.add_argument("--math", type=Path, required=True, help="JSON Lines with question and answer")
    parser.add_argument("--jobs", type=Path, required=True, help="a folder of JSON Lines with messages")
    parser.add_argument("--schema", type=Path, required=True, help="the JSON Schema of their answers")
    parser.add_argument("--work", type=Path, required=True, help="a folder for everything that is made")
    parser.add_argument("--rows", type=int, default=40, help="held-out rows of each task")
    parser.add_argument("--steps", type=int, default=60, help="optimizer steps of the LoRA")
    parser.add_argument("--max-new-tokens", type=int, default=128, help="of each answer")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--write", type=Path, help="also write the tables here")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    _rows(args)
    outputs = _trained(args)
    found = {form.name: _evaluated(args, form) for form in forms(args.model, outputs)}
    text = tables(found, _by_hand(args, outputs["merged"]))
    sys.stdout.write(text)
    if args.write:
        args.write.write_text(text, encoding="utf-8")
    return 0


def forms(model: Path, outputs: dict[str, Path]) -> Iterator[Form]:
    """Every form; a baseline is measured before what is compared with it."""
    yield Form("before, folder float32", str(model), ("--dtype", "float32", "--batch", "8"))
    for kind in TYPES:
        yield Form(f"before, {kind}", _file(outputs["base-gguf"], kind), (), "before, folder float32")
    yield Form("after, folder float32", str(outputs["merged"]), ("--dtype", "float32", "--batch", "8"))
    for kind in TYPES:
        yield Form(f"after, {kind}", _file(outputs["gguf"], kind), (), "after, folder float32")
    wide = ("--dtype", "float32", "--batch", "8")
    yield Form("after, adapter float32", str(outputs["tuned"]), wide, "after, folder float32")
    yield Form("after, folder bfloat16", str(outputs["merged"]), ("--batch", "8"), "after, folder float32")


def _file(folder: Path, kind: str) -> str:
    return str(next(folder.glob(f"*{kind}*.gguf")))


def _rows(args: argparse.Namespace) -> None:
    """Training rows of both tasks, and the held-out rows with their checks; no question is in both."""
    if (args.work / "tests.jsonl").is_file():
        return
    schema = json.loads(args.schema.read_text())
    math = list(_first_steps(args.math))
    jobs = [
        json.loads(line) for file in sorted(args.jobs.glob("*.jsonl")) for line in file.open() if "messages" in line
    ]
    tests: list[dict[str, Any]] = []
    for at, row in enumerate(math[-args.rows :]):
        tests.append({**row, "checks": ["number"], "id": f"{MATH}-{at}"})
    for at, row in enumerate(jobs[:: max(1, len(jobs) // args.rows)][: args.rows]):
        tests.append({"messages": row["messages"], "schema": schema, "id": f"{OBJECTS}-{at}"})
    held_out = {_question(row) for row in tests}
    train = [
        {"messages": [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["answer"]}]}
        for row in math
    ]
    train += [{"messages": row["messages"]} for row in jobs[1::8]]
    train = [row for row in train if _question(row) not in held_out]
    _write(args.work / "train.jsonl", train)
    _write(args.work / "tests.jsonl", tests)


def _first_steps(file: Path) -> Iterator[dict[str, str]]:
    """The short questions, each with the first calculation of its answer."""
    for line in file.read_text("utf-8").splitlines():
        row = json.loads(line)
        step = re.search(r"<<([^<>=]+)=(-?[\d.]+)>>", row["answer"])
        if step is not None and len(row["question"]) <= LONGEST_CHARACTERS:
            yield {"question": row["question"] + FIRST_STEP, "answer": f"{step[1]} = {step[2]}\n#### {step[2]}"}


def _question(row: dict[str, Any]) -> str:
    return str(row["question"] if "question" in row else row["messages"][-2]["content"])


def _write(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _trained(args: argparse.Namespace) -> dict[str, Path]:
    """The outputs of the training, with the general questions before and after it, and the GGUF files of the base."""
    types = json.dumps(list(TYPES))
    general = 'data = "./train.jsonl"\ntests = "general"\nmax_tokens = 2000\nmax_new_tokens = 16\nthreads = 1\n'
    tuned = (
        f'[[stage]]\nname = "tuned"\nkind = "finetune"\nmodel = "{args.model}"\ndata = "./train.jsonl"\n'
        f"max_length = 256\nmax_steps = {args.steps}\nper_device_train_batch_size = 8\nlearning_rate = 1e-3\n"
        f"warmup_steps = 10\nr = 16\nthreads = {args.threads}\nsave_steps = 40\n"
        f'[[stage]]\nname = "merged"\nkind = "merge"\nmodel = "{args.model}"\nadapter = "tuned"\n'
        f'[[stage]]\nname = "gguf"\nkind = "export"\nmodel = "merged"\nfile_types = {types}\n'
        "parity_positions = 256\n"
        f'[[stage]]\nname = "general-before"\nkind = "evaluate"\nmodel = "{args.model}"\n{general}'
        f'[[stage]]\nname = "general-after"\nkind = "evaluate"\nmodel = "merged"\n{general}'
        'files = "gguf"\nbaseline = "general-before"\n'
    )
    base = (
        f'[[stage]]\nname = "base-gguf"\nkind = "export"\nmodel = "{args.model}"\nfile_types = {types}\n'
        "parity_positions = 0\n"
    )
    return {
        **_outputs(args, "base-files", base, ("base-gguf",)),
        **_outputs(args, "two-tasks", tuned, ("tuned", "merged", "gguf")),
    }


def _outputs(args: argparse.Namespace, name: str, stages: str, wanted: Sequence[str]) -> dict[str, Path]:
    """The outputs of one run, which is started if there is none."""
    recipe = args.work / f"{name}.toml"
    recipe.write_text(f'schema = 1\nname = "{name}"\n{stages}')
    runs = args.work / "runs"
    if not list(runs.glob(f"*-{name}")):
        _cockpit(["--runs-dir", str(runs), "run", str(recipe)])
    run = RunDir(max(runs.glob(f"*-{name}")))
    missing = [one for one in wanted if not run.out(one).is_dir()]
    if missing:
        raise SystemExit(f"bench: {run.root} has no output of {', '.join(missing)}; resume the run first")
    return {one: run.out(one) for one in wanted}


def _evaluated(args: argparse.Namespace, form: Form) -> dict[str, Any]:
    output = _results(args, form.name)
    words = ["evaluate", form.model, "--test-data", str(args.work / "tests.jsonl"), "--output", str(output)]
    words += ["--max-new-tokens", str(args.max_new_tokens), "--threads", str(args.threads), *form.options]
    if form.baseline:
        words += ["--baseline", str(_results(args, form.baseline)), "--explain"]
    sys.stderr.write(f"{form.name} …\n")
    _cockpit(words)
    found: dict[str, Any] = json.loads(output.read_text())
    return found


def _results(args: argparse.Namespace, name: str) -> Path:
    return Path(args.work / f"{re.sub(r'[^a-z0-9]+', '-', name.lower())}.json")


def _cockpit(words: list[str]) -> None:
    subprocess.run([sys.executable, "-m", "cockpit", *words], check=True, stdout=sys.stderr)


def _by_hand(args: argparse.Namespace, merged: Path) -> dict[str, bool]:
    """Which of the first rows of each task pass, by a loop of this file: `generate`, and checks written here."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    kept = args.work / "by-hand.json"
    if kept.is_file():
        known: dict[str, bool] = json.loads(kept.read_text())
        return known
    torch.set_num_threads(args.threads)
    tokenizer = AutoTokenizer.from_pretrained(merged)
    model = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32).eval()
    rows = [json.loads(line) for line in (args.work / "tests.jsonl").open()]
    found = {}
    for row in [*rows[:HAND_ROWS], *rows[-HAND_ROWS:]]:
        turns = row["messages"][:-1] if "messages" in row else [{"role": "user", "content": row["question"]}]
        given = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        with torch.no_grad():
            made = model.generate(**given, do_sample=False, max_new_tokens=args.max_new_tokens, pad_token_id=0)
        answer = tokenizer.decode(made[0, given["input_ids"].shape[1] :], skip_special_tokens=True)
        found[row["id"]] = _has_number(answer, row["answer"]) if "answer" in row else _is_object(answer)
    kept.write_text(json.dumps(found))
    return found


def _has_number(answer: str, expected: str) -> bool:
    """The number after ####, else the last one, is the expected one."""
    mark = answer.partition("####")[2]
    numbers = re.findall(r"-?\d[\d,]*(?:\.\d+)?", mark) or re.findall(r"-?\d[\d,]*(?:\.\d+)?", answer)[-1:]
    wanted = float(expected.partition("####")[2].replace(",", ""))
    return bool(numbers) and abs(float(numbers[0].replace(",", "")) - wanted) < 1e-6


def _is_object(answer: str) -> bool:
    """The JSON object that the schema of the jobs asks for, key by key."""
    try:
        value = json.loads(answer)
        steps = value["R"]
        lists = [value.get("C", []), steps["with"]]
        texts = [value["I"], steps["do"], steps.get("until", ""), *(one for each in lists for one in each)]
        return (
            value.keys() <= set("TICRP")
            and steps.keys() <= {"do", "with", "until"}
            and value["T"] in ("agent", "workflow", "code", "memory", "reflect", "team")
            and len(value["I"]) >= 3
            and len(value.get("C", [])) <= 5
            and all(type(each) is list for each in lists)
            and all(type(one) is str for one in texts)
            and type(value.get("P", 1)) is int
            and 1 <= value.get("P", 1) <= 9
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return False


def tables(found: dict[str, dict[str, Any]], by_hand: dict[str, bool]) -> str:
    """The tables in Markdown."""
    lines = [
        "| model | math | JSON | 95 % of both | ended | p50 | tok/s | size | answers equal | largest gap |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, results in found.items():
        metrics, comparison = results["metrics"], results["comparison"]
        shares = [_share(results, task) for task in (MATH, OBJECTS)]
        interval = f"{100 * metrics['success_low']:.0f} to {100 * metrics['success_high']:.0f} %"
        equal = f"{100 * metrics['same_answers']:.1f} %" if comparison else ""
        gaps = [abs(one["gap"]) for one in results.get("differences") or [] if one["gap"] is not None]
        largest = f"{max(gaps):.3f}" if gaps else ""
        times = [f"{metrics['latency_p50_s']:.1f} s", f"{metrics['answer_tokens_per_second']:.0f}"]
        row = [name, *shares, interval, f"{100 * metrics['ended']:.0f} %", *times, _size(metrics), equal, largest]
        lines.append(f"| {' | '.join(row)} |")
    folder = {row["name"]: row["passed"] for row in found["after, folder float32"]["rows"]}
    differing = [name for name, passed in by_hand.items() if folder[name] != passed]
    lines += ["", f"By hand: {len(by_hand)} rows of the folder judged again, {len(differing)} verdicts differ."]
    lines += ["", "First differences of the F16 files from the folder in float32:", ""]
    lines += ["| file | row | token | folder | file | gap of logits |", "|---|---|--:|---|---|--:|"]
    for name in ("before, F16", "after, F16"):
        for one in found.get(name, {}).get("differences") or []:
            words = [one["baseline"], one["model"]]
            gap = "" if one["gap"] is None else f"{one['gap']:.4f}"
            lines.append(f"| {name} | {one['name']} | {one['at']} | {words[0]!r} | {words[1]!r} | {gap} |")
    return "\n".join(lines) + "\n"


def _share(results: dict[str, Any], task: str) -> str:
    rows = [row["passed"] for row in results["rows"] if row["name"].startswith(task)]
    return f"{sum(rows)} of {len(rows)}"


def _size(metrics: dict[str, float]) -> str:
    return f"{metrics['size_bytes'] / 1e6:.0f} MB"


if __name__ == "__main__":
    sys.exit(main())
