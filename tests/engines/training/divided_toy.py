"""`torchrun --nproc-per-node 2 divided_toy.py FOLDER`: FSDP2 over two processes, saved in shards.

Three steps, a sharded save, a save by one process of the gathered weights, and two more steps, whose losses are in
`losses.json`. `train` is the same with one process.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import distributed

SEED, ROWS, LENGTH = 3, 4, 8


def toy() -> Any:
    """A small decoder with tied embeddings; seven rows of a weight do not divide evenly."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=37, hidden_size=12, intermediate_size=20, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, tie_word_embeddings=True, attn_implementation="eager",
    )  # fmt: skip
    return LlamaForCausalLM(config)


def optimizer_of(model: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-2, foreach=False)


def train(model: Any, optimizer: torch.optim.Optimizer, steps: range, rank: int = 0, size: int = 1) -> list[float]:
    """The losses of steps on the same rows for any number of processes: the mean over all rows."""
    losses = []
    for step in steps:
        rows = torch.randint(0, 37, (ROWS, LENGTH), generator=torch.Generator().manual_seed(step))[rank::size]
        loss = model(input_ids=rows, labels=rows).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        total = loss.detach().clone()
        if size > 1:
            distributed.all_reduce(total)
        losses.append(float(total) / size)
    return losses


def tensors_of(model: Any, optimizer: torch.optim.Optimizer) -> Mapping[str, torch.Tensor]:
    """Weights and optimizer state by name."""
    found = {f"model/{name}": value for name, value in model.state_dict().items()}
    for name, weight in model.named_parameters():
        found |= {f"optimizer/{name}/{key}": value for key, value in optimizer.state[weight].items()}
    return found


def main(folder: Path) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    from engines.training.saves.divided import pieces_of
    from engines.training.saves.shards import collect_shards, write_shard

    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    rank, size = distributed.get_rank(), distributed.get_world_size()
    model = toy()
    mesh = init_device_mesh("cpu", (size,))
    for module in [*model.model.layers, model]:
        fully_shard(module, mesh=mesh)
    optimizer = optimizer_of(model)
    losses = train(model, optimizer, range(3), rank, size)
    write_shard(folder / "sharded", rank, size, pieces_of(tensors_of(model, optimizer), rank, size))
    if rank == 0:
        collect_shards(folder / "sharded", size, keep_waiting=lambda: True, timeout_s=100)
    whole = {name: value.full_tensor() for name, value in model.state_dict().items()}
    if rank == 0:
        one = toy()
        one.load_state_dict(whole)
        one.save_pretrained(folder / "one")
    losses += train(model, optimizer, range(3, 5), rank, size)
    if rank == 0:
        (folder / "losses.json").write_text(json.dumps(losses))
    distributed.barrier()
    sys.stdout.flush()
    os._exit(0)  # gloo's own end may abort


if __name__ == "__main__":
    main(Path(sys.argv[1]))
