"""One module per command, with its arguments and its work; imported only when the command is used.

A module has `declare(parser)`, which adds the command's arguments, and `run(args)`, which executes it and returns the
exit code. To add a command, add a module here and a line in `PURPOSES`.
"""

from __future__ import annotations

PURPOSES = {
    "run": "run a recipe and follow it",
    "check": "check a recipe without running it",
    "plan": "find the shape of a model with a wanted number of parameters",
    "import": "make a recipe of a configuration of LLaMA-Factory, Axolotl, TRL or Unsloth",
    "rows": "show rows of data as the model will see them: tokens, what is trained, where a row is cut",
    "ls": "list runs, newest first",
    "show": "show the stages, losses, checkpoints and artifacts of a run",
    "attach": "follow a run on the screen or as lines; a running engine gets a supervisor",
    "stop": "stop a run after its next checkpoint, and wait until it ends",
    "ctl": "pause, continue or change a running training: learning rate, steps, evaluate, sample, checkpoint",
    "resume": "resume a run; finished stages are kept",
    "trust": "allow Cockpit to act on a run that you did not launch on this machine",
    "replay": "play back a run, on the screen or as lines",
    "consolidate": "write the whole weights of a checkpoint in shards, as a model folder",
    "merge": "merge LoRA adapters into their base model, as a new run",
    "export": "write GGUF files of a model and compare them with it, as a new run",
    "quantize": "quantize a GGUF file immediately; for a model folder, start an export run",
    "parity": "compare GGUF files with their source model, in llama.cpp and in other runtimes",
    "evaluate": "measure loss on data, or ask the tasks of a test file and judge the answers",
    "chat": "talk with a model, or with two side by side",
    "blind": "choose between the answers of two models, without knowing which is which",
    "answers": "show the rows of an evaluation: failed, passed, changed against a baseline",
    "models": "list the models on this machine, and what can be done with each",
    "pull": "download a model from a hub into its cache, verified, at a fixed commit",
    "ship": "judge whether a GGUF file may ship: one verdict, bound to its SHA-256, with a report",
    "metrics": "write the curves of a run as CSV, SVG or PNG",
    "note": "write a line about a run, which every list shows",
    "mv": "rename a run; what refers to it still finds it",
    "du": "list what runs take on the disk: checkpoints, outputs, journals, logs",
    "prune": "remove checkpoints and replaced outputs that nothing needs",
    "rm": "remove runs, after a question",
    "verify": "check an artifact and its ancestors by SHA-256",
    "render": "print a script with which another program starts a recipe: Slurm, on several hosts",
    "completion": "print a completion script for a shell",
}
"""Purpose of each command, in the order of the help page."""

_FOLDERS = {
    "house": ("consolidate", "du", "metrics", "mv", "note", "prune", "rm"),
    "hub": ("models", "pull"),
    "rendering": ("render",),
    "shipping": ("ship",),
    "sizing": ("plan",),
    "talk": ("answers", "blind", "chat"),
}
"""Commands whose module is in a folder, by the folder."""

_MODULES = {"import": "import_config"}
"""Modules of commands whose names Python keeps for itself."""


def module_of(command: str) -> str:
    """The module of a command."""
    folder = next((f"{folder}." for folder, commands in _FOLDERS.items() if command in commands), "")
    return f"cockpit.commands.{folder}{_MODULES.get(command, command)}"
