"""The batch script for Slurm: its text, that bash reads it, and that no value becomes more than a word."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from cockpit.planning.slurm import SlurmOptions, slurm_script
from recipes.load import load_recipe_text
from recipes.problems import OperatorError

TWO_HOSTS = """\
#!/bin/bash
#SBATCH --job-name=two
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=1-12
#SBATCH --output=two-%j.log

set -u
# Every host starts the same recipe; torchrun's processes meet on the first host of the job.
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
run=(cockpit run '/srv/my recipes/two.toml' --set a.seed=7 --set "a.launch.rendezvous=\\"$first:29400\\"")
# 130: this host's run ends as stopped when the run of another host has the results.
srun bash -c '"$@"; status=$?; if [ "$status" -eq 130 ]; then exit 0; fi; exit "$status"' run "${run[@]}"
"""


def script(launch: str, options: SlurmOptions, *sets: str) -> str:
    table = f"[stage.launch]\n{launch}\n" if launch else ""
    text = f'schema = 1\nname = "two"\n[[stage]]\nname = "a"\nkind = "fake"\n{table}'
    path = Path("/srv/my recipes/two.toml")
    return slurm_script(load_recipe_text(text, path), path, sets, options)


def test_a_script_for_two_hosts() -> None:
    launch = 'nodes = 2\nprocesses = 4\nstrategy = "ddp"\nrendezvous = "any:29400"'
    found = script(launch, SlurmOptions(time="1-12", cpus=32), "a.seed=7")
    assert found == TWO_HOSTS
    subprocess.run(["bash", "-n"], input=found, text=True, check=True)


def test_on_one_host_the_recipe_chooses_its_own_port() -> None:
    found = script('processes = 2\nstrategy = "ddp"', SlurmOptions(gpus=0))
    assert found.endswith("set -u\nexec srun cockpit run '/srv/my recipes/two.toml'\n")
    assert "gpus-per-node" not in found
    assert "#SBATCH --exclusive" in found


@pytest.mark.parametrize(
    "options", [{"time": "1\n#SBATCH --x"}, {"partition": "a b"}, {"account": "$(touch x)"}, {"time": "soon"}]
)
def test_a_value_that_is_more_than_a_word_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(OperatorError, match="got"):
        script("", SlurmOptions(**options))


def test_the_first_host_of_the_job_is_what_the_recipe_reads(tmp_path: Path) -> None:
    """The script runs in bash with programs in place of Slurm's, and the command prints its arguments."""
    for name, body in {
        "scontrol": "echo node-7; echo node-8",
        "srun": 'exec "$@"',
        "cockpit": 'printf "%s\\n" "$@"; exit 130',
    }.items():
        program = tmp_path / name
        program.write_text(f"#!/bin/bash\n{body}\n")
        program.chmod(0o755)
    text = script('nodes = 2\nstrategy = "ddp"\nrendezvous = "any:29400"', SlurmOptions())
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_NODELIST": "node-[7-8]"}
    done = subprocess.run(["bash"], input=text, text=True, check=False, capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == ["--set", 'a.launch.rendezvous="node-7:29400"']
