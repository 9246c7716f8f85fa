"""Factored gradients in two processes on gloo: the weights of one process on the joined batch, on every rank."""

import contextlib
import socket
from typing import Any

import pytest
import torch
from factored_nets import batch, net, twin
from torch import Tensor, distributed, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

import manualgrad as mg
from manualgrad import factoring


STEPS = 4
VARIANTS: dict[str, dict[str, Any]] = {
    "copied buckets": {"gradient_as_bucket_view": False},
    "bucket views": {"gradient_as_bucket_view": True},
    "static graph": {"static_graph": True},
    "accumulation without sync": {"accumulate": 2},
}


def train(model: nn.Module, optimizer: torch.optim.Optimizer, part: slice, accumulate: int) -> None:
    for i in range(STEPS):
        optimizer.zero_grad()
        for j in range(accumulate):
            x, y = batch(4, seed=10 * i + j)
            last = j == accumulate - 1 or not isinstance(model, DistributedDataParallel)
            with contextlib.nullcontext() if last else model.no_sync():
                nn.functional.mse_loss(model(x[part]), y[part]).backward()
        optimizer.step()


def process(rank: int, port: int, results: Any) -> None:
    torch.set_num_threads(1)
    factoring.SMALLEST_FACTORED_WEIGHT = 0
    address = f"tcp://127.0.0.1:{port}"
    distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    for name, options in VARIANTS.items():
        options = dict(options)
        accumulate = options.pop("accumulate", 1)
        model = DistributedDataParallel(net(), **options)
        optimizer = mg.GradientDescent(model.parameters(), lr=0.1, momentum=0.9)
        train(model, optimizer, slice(2 * rank, 2 * rank + 2), accumulate)
        results[name, rank] = [p.detach().tolist() for p in model.parameters()]
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def trained() -> Any:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with multiprocessing.Manager() as manager:
        results = manager.dict()
        multiprocessing.spawn(process, args=(port, results), nprocs=2)
        return dict(results)


@pytest.mark.parametrize("name", VARIANTS)
def test_two_processes_train_as_one(name: str, trained: Any) -> None:
    alone = twin(net())
    optimizer = torch.optim.SGD(alone.parameters(), lr=0.1, momentum=0.9)
    train(alone, optimizer, slice(None), VARIANTS[name].get("accumulate", 1))
    for rank in range(2):
        for values, expected in zip(trained[name, rank], alone.parameters(), strict=True):
            value: Tensor = torch.tensor(values, dtype=torch.float64)
            torch.testing.assert_close(value, expected.detach(), rtol=1e-12, atol=1e-12)
