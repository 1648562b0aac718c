"""A configuration of accelerate launch becomes the table `launch` of the stage that trains, key by key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cockpit.importing.config import read_config
from cockpit.importing.draft import Outcome
from cockpit.importing.programs import Imported, import_config
from cockpit.importing.recipe_text import recipe_text
from recipes.load import load_recipe_text
from recipes.problems import OperatorError

FULL = "model_name_or_path: a/b\ndataset_name: c/d\nlearning_rate: 1.0e-5\nmax_length: 512\n"
LORA = FULL + "use_peft: true\nlora_r: 8\n"
FSDP = """\
compute_environment: LOCAL_MACHINE
debug: false
distributed_type: FSDP
downcast_bf16: 'no'
enable_cpu_affinity: false
fsdp_config:
  fsdp_activation_checkpointing: true
  fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP
  fsdp_offload_params: {offload}
  fsdp_version: 2
machine_rank: 0
main_training_function: main
mixed_precision: bf16
num_machines: 1
num_processes: 8
rdzv_backend: static
same_network: true
tpu_env: []
use_cpu: false
"""


def imported(folder: Path, training: str, launch: str) -> Imported:
    (folder / "sft.yaml").write_text(training)
    (folder / "accelerate.yaml").write_text(launch)
    return import_config(read_config(folder / "sft.yaml"), "trl", (), read_config(folder / "accelerate.yaml"))


def outcome(found: Imported, key: str) -> Outcome:
    (one,) = [one for one in found.outcomes if one.key.endswith(f"  {key}")]
    return one


def launch_of(found: Imported, folder: Path) -> dict[str, Any]:
    """The table in the recipe, as Cockpit reads it."""
    recipe = load_recipe_text(recipe_text(found), folder / "recipe.toml").recipe
    (stage,) = [one for one in recipe.stage if one.name == "tuned"]
    launch: dict[str, Any] = stage.launch.model_dump(exclude_defaults=True)  # type: ignore[attr-defined]
    return launch


def test_fsdp_becomes_fsdp2_and_every_key_has_an_outcome(tmp_path: Path) -> None:
    found = imported(tmp_path, FULL, FSDP.format(offload="false"))
    assert launch_of(found, tmp_path) == {"processes": 8, "strategy": "fsdp2"}
    assert (found.stages["tuned"]["bf16"], found.stages["tuned"]["gradient_checkpointing"]) == (True, True)
    kind = outcome(found, "distributed_type")
    assert kind.key == "accelerate.yaml:3  distributed_type"
    assert (kind.status, kind.fields) == ("imported", ("tuned.launch",))
    keys = [line.partition(":")[0].strip() for line in FSDP.splitlines()]
    for key in keys:
        name = f"fsdp_config.{key}" if key.startswith("fsdp_") and key != "fsdp_config" else key
        assert outcome(found, name).status != "unknown"


def test_an_adapter_has_ddp_where_its_file_divides_the_model_and_that_is_said(tmp_path: Path) -> None:
    found = imported(tmp_path, LORA, FSDP.format(offload="true") + "new_key: 1\n")
    assert launch_of(found, tmp_path) == {"processes": 8, "strategy": "ddp"}
    assert "no fsdp2" in outcome(found, "distributed_type").says
    assert outcome(found, "fsdp_config.fsdp_offload_params").status == "different"
    assert outcome(found, "new_key").status == "unknown"


@pytest.mark.parametrize(
    ("launch", "training", "table"),
    [
        ("distributed_type: 'NO'\nnum_processes: 1\n", FULL, {}),
        (
            "distributed_type: MULTI_GPU\nnum_processes: 4\ngpu_ids: 0,1,2,3\n",
            FULL,
            {"processes": 4, "strategy": "ddp"},
        ),
        (
            "distributed_type: MULTI_GPU\nnum_processes: 4\n",
            FULL + "fsdp: full_shard auto_wrap\n",
            {"processes": 4, "strategy": "fsdp2"},
        ),
        (
            "distributed_type: DEEPSPEED\nnum_processes: 2\ndeepspeed_config:\n  zero_stage: 3\n",
            FULL,
            {"processes": 2, "strategy": "fsdp2"},
        ),
        (
            "distributed_type: DEEPSPEED\nnum_processes: 2\ndeepspeed_config:\n  zero_stage: 1\n",
            FULL,
            {"processes": 2, "strategy": "ddp"},
        ),
        (
            "distributed_type: MULTI_GPU\nnum_processes: 16\nnum_machines: 2\nmain_process_ip: 10.0.0.1\n"
            "main_process_port: 29500\n",
            FULL,
            {"processes": 8, "nodes": 2, "rendezvous": "10.0.0.1:29500", "strategy": "ddp"},
        ),
    ],
)
def test_processes_hosts_and_strategies(tmp_path: Path, launch: str, training: str, table: dict[str, Any]) -> None:
    assert launch_of(imported(tmp_path, training, launch), tmp_path) == table


def test_what_does_not_fit_is_named_and_not_set(tmp_path: Path) -> None:
    odd = imported(tmp_path, FULL, "distributed_type: MULTI_GPU\nnum_processes: 5\nnum_machines: 2\n")
    assert outcome(odd, "num_processes").says == "5 processes do not divide evenly over 2 hosts"
    nowhere = imported(tmp_path, FULL, "distributed_type: MULTI_GPU\nnum_processes: 4\nnum_machines: 2\n")
    assert "not an address with a port" in outcome(nowhere, "num_machines").says
    assert "launch" not in odd.stages["tuned"] | nowhere.stages["tuned"]
    wrong = imported(tmp_path, FULL, "distributed_type: MULTI_GPU\nnum_processes: many\n")
    assert outcome(wrong, "num_processes").status == "different"


def test_a_file_in_the_wrong_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(FSDP.format(offload="false"))
    (tmp_path / "t.yaml").write_text(FULL)
    with pytest.raises(OperatorError, match=r"a\.yaml is a configuration of accelerate launch") as error:
        import_config(read_config(tmp_path / "a.yaml"), None)
    assert "--accelerate" in error.value.hint
    with pytest.raises(OperatorError, match=r"t\.yaml is not a configuration of accelerate launch"):
        import_config(read_config(tmp_path / "t.yaml"), None, (), read_config(tmp_path / "t.yaml"))


def test_inner_keys_that_are_not_known_are_named_and_those_of_another_kind_count_for_nothing(tmp_path: Path) -> None:
    launch = (
        "distributed_type: FSDP\nnum_processes: 2\nfsdp_config:\n  activation_checkpointing: true\n  fsdp_banana: 1\n"
        "deepspeed_config:\n  zero_stage: 1\n"
    )
    found = imported(tmp_path, FULL, launch)
    assert outcome(found, "fsdp_config.fsdp_banana").status == "unknown"
    assert outcome(found, "fsdp_config.activation_checkpointing").fields == ("tuned.gradient_checkpointing",)
    assert "DEEPSPEED only" in outcome(found, "deepspeed_config.zero_stage").says
    other = imported(tmp_path, FULL, launch.replace("FSDP", "MULTI_GPU"))
    assert outcome(other, "fsdp_config.activation_checkpointing").status == "unneeded"
    odd = imported(tmp_path, FULL, "distributed_type: FSDP\nnum_processes: 2\nfsdp_config: [1]\n")
    assert outcome(odd, "fsdp_config").status == "unknown"


@pytest.mark.parametrize("word", ["'NO'", "NO"])
def test_without_a_distributed_type_accelerate_starts_one_process(tmp_path: Path, word: str) -> None:
    found = imported(tmp_path, FULL, f"distributed_type: {word}\nnum_processes: 8\nmixed_precision: bf16\n")
    assert launch_of(found, tmp_path) == {}
    assert outcome(found, "num_processes").status == "unneeded"


def test_what_shares_rows_between_processes_trains_differently(tmp_path: Path) -> None:
    megatron = imported(
        tmp_path,
        FULL,
        "distributed_type: MEGATRON_LM\nnum_processes: 8\nmegatron_lm_config:\n  megatron_lm_tp_degree: 4\n",
    )
    assert outcome(megatron, "distributed_type").status == "different"
    assert outcome(megatron, "megatron_lm_config.megatron_lm_tp_degree").status == "different"
    tensor = imported(
        tmp_path,
        FULL,
        "distributed_type: FSDP\nnum_processes: 8\nparallelism_config:\n  parallelism_config_tp_size: 4\n"
        "  parallelism_config_cp_size: 1\n",
    )
    assert "4 times as many rows" in outcome(tensor, "parallelism_config.parallelism_config_tp_size").says
    assert outcome(tensor, "parallelism_config.parallelism_config_cp_size").status == "unneeded"


@pytest.mark.parametrize(
    ("inner", "strategy", "status"),
    [
        ("fsdp_reshard_after_forward: NO_SHARD", "ddp", "unneeded"),
        ("fsdp_reshard_after_forward: false", "fsdp2", "different"),
        ("fsdp_reshard_after_forward: true", "fsdp2", "unneeded"),
    ],
)
def test_either_version_of_fsdp_says_how_much_is_divided(
    tmp_path: Path, inner: str, strategy: str, status: str
) -> None:
    found = imported(tmp_path, FULL, f"distributed_type: FSDP\nnum_processes: 2\nfsdp_config:\n  {inner}\n")
    assert launch_of(found, tmp_path)["strategy"] == strategy
    assert outcome(found, "fsdp_config.fsdp_reshard_after_forward").status == status


def test_a_cpu_and_another_computer_are_differences_and_a_false_format_names_none(tmp_path: Path) -> None:
    found = imported(
        tmp_path,
        FULL + "bf16: false\n",
        "compute_environment: AMAZON_SAGEMAKER\ndistributed_type: MULTI_GPU\nuse_cpu: true\nmixed_precision: bf16\n",
    )
    assert {outcome(found, key).status for key in ("compute_environment", "use_cpu")} == {"different"}
    assert "no num_processes" in outcome(found, "distributed_type").says
    assert found.stages["tuned"]["bf16"] is True
