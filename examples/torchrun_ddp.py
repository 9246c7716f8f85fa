"""Two processes, each with half of every batch, come to the weights of one process with all of it.

    python examples/torchrun_ddp.py

starts them itself; so does `torchrun --nproc-per-node 2 examples/torchrun_ddp.py`.

Expected output:

    loss 0.706 -> 0.318
    2 processes and one, the same weights: yes
"""

import os
import subprocess
import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import manualgrad as mg


PROCESSES = 2
BATCH = 8  # in all processes together
STEPS = 50
LEARNING_RATE = 0.01


def train(model: nn.Module, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> list[float]:
    optimizer = mg.GradientDescent(model.parameters(), lr=LEARNING_RATE)
    loss, costs = mg.QuadraticLoss(), []
    for x, y in batches:
        optimizer.zero_grad()
        cost = loss(model(x), y)
        cost.backward()
        optimizer.step()
        costs.append(cost.item())
    return costs


def model() -> nn.Module:
    torch.manual_seed(0)  # the same weights everywhere
    return mg.MLP([64, 512, 512, 4], "tanh", dtype=torch.float64)


def main() -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    torch.manual_seed(1)
    teacher = nn.Linear(64, 4, dtype=torch.float64).requires_grad_(False)
    inputs = [torch.randn(BATCH, 64, dtype=torch.float64) for _ in range(STEPS)]
    halves = [x.chunk(PROCESSES)[rank] for x in inputs]

    together = model()
    train(DistributedDataParallel(together), [(x, teacher(x)) for x in halves])
    if rank == 0:
        alone = model()
        costs = train(alone, [(x, teacher(x)) for x in inputs])
        print(f"loss {costs[0]:.3f} -> {costs[-1]:.3f}")
        differences = [(p - q).abs().max() for p, q in zip(together.parameters(), alone.parameters(), strict=True)]
        same = max(differences) < 1e-12
        print(f"{PROCESSES} processes and one, the same weights: {'yes' if same else 'NO'}")
    dist.barrier()  # a process that leaves early takes the other's connection with it
    dist.destroy_process_group()


if __name__ == "__main__":
    if "RANK" in os.environ:
        main()
    else:  # what the command torchrun does
        command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(PROCESSES), __file__]
        sys.exit(subprocess.call([sys.executable, *command]))
