"""Two processes that send the factors of their gradients come to the weights of one process with all of the batch.

    python examples/torchrun_factored.py

starts them itself; so does `torchrun --nproc-per-node 2 examples/torchrun_factored.py`.

Expected output:

    DistributedDataParallel averages 8.03 MiB of gradients a step, exchange_factors sends 0.09 MiB instead
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
from manualgrad.distributed import exchange_factors


PROCESSES = 2
BATCH = 8  # in all processes together
STEPS = 10
SLOW_LINK = 1.25e8  # bytes a second: 1 Gb/s. Left out, it is measured.


def train(model: nn.Module, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    optimizer = mg.GradientDescent(model.parameters(), lr=0.01)
    for x, y in batches:
        optimizer.zero_grad()
        mg.QuadraticLoss()(model(x), y).backward()
        optimizer.step()


def net() -> mg.MLP:
    torch.manual_seed(0)
    return mg.MLP([512, 1024, 512, 4], "tanh", dtype=torch.float64)


def main() -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    torch.manual_seed(1)
    batches = [(torch.randn(BATCH, 512).double(), torch.randn(BATCH, 4).double()) for _ in range(STEPS)]
    own = [(x.chunk(PROCESSES)[rank], y.chunk(PROCESSES)[rank]) for x, y in batches]

    together = exchange_factors(net(), bandwidth=SLOW_LINK)
    train(DistributedDataParallel(together), own)
    if rank == 0:
        gradients = [p.grad for p in together.parameters()]
        factored = [g for g in gradients if isinstance(g, mg.FactoredGradient) and not g.is_dense]
        dense = sum(p.nbytes for p in together.parameters()) / 2**20
        sent = sum((g.delta.nbytes + g.a.nbytes) / PROCESSES for g in factored) / 2**20
        print(
            f"DistributedDataParallel averages {dense:.2f} MiB of gradients a step, exchange_factors sends {sent:.2f} MiB instead"
        )
        alone = net()
        train(alone, batches)
        differences = [(p - q).abs().max() for p, q in zip(together.parameters(), alone.parameters(), strict=True)]
        print(f"{PROCESSES} processes and one, the same weights: {'yes' if max(differences) < 1e-12 else 'NO'}")
    dist.barrier()  # a process that leaves early takes the other's connection with it
    dist.destroy_process_group()


if __name__ == "__main__":
    if "RANK" in os.environ:
        main()
    else:  # what the command torchrun does
        command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(PROCESSES), __file__]
        sys.exit(subprocess.call([sys.executable, *command]))
