"""What two gloo processes do in tests/contract/test_distributed.py: each case trains on half of a batch."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

import manualgrad as mg


WORLD = 2
STEPS = 4
WIDTH = 256  # wide enough for factored gradients


def model() -> nn.Sequential:
    torch.manual_seed(1)
    layers = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 3))
    return mg.convert(layers.double())


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(8, WIDTH, dtype=torch.float64, generator=generator)
    return x, torch.randn(8, 3, dtype=torch.float64, generator=generator)


def train(module: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, clip: float | None = None) -> None:
    for _ in range(STEPS):
        optimizer.zero_grad()
        mg.QuadraticLoss()(module(x), y).backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(module.parameters(), clip)
        optimizer.step()


def alone(optimizer: Callable[..., Any] = torch.optim.SGD, clip: float | None = None, **options: Any) -> nn.Module:
    """One process on the joined batch, by autograd."""
    expected = mg.revert(model())
    train(expected, optimizer(expected.parameters(), lr=0.05, **options), *batch(), clip)
    return expected


def halves() -> tuple[Tensor, Tensor]:
    x, y = (t.chunk(WORLD)[dist.get_rank()] for t in batch())
    return x, y


def ddp(**options: Any) -> tuple[nn.Module, nn.Module]:
    module = model()
    train(DistributedDataParallel(module), mg.GradientDescent(module.parameters(), lr=0.05, **options), *halves())
    options.pop("factored", None)
    return module, alone(**options)


def ddp_clipped() -> tuple[nn.Module, nn.Module]:
    module = model()
    train(DistributedDataParallel(module), mg.GradientDescent(module.parameters(), lr=0.05), *halves(), clip=0.1)
    return module, alone(clip=0.1)


def ddp_bucket_views() -> tuple[nn.Module, nn.Module]:
    module = model()
    wrapped = DistributedDataParallel(module, gradient_as_bucket_view=True)
    train(wrapped, mg.GradientDescent(module.parameters(), lr=0.05), *halves())
    return module, alone()


def ddp_static_graph() -> tuple[nn.Module, nn.Module]:
    module = model()
    wrapped = DistributedDataParallel(module, static_graph=True)
    train(wrapped, mg.GradientDescent(module.parameters(), lr=0.05), *halves())
    return module, alone()


def ddp_with_unused_layers() -> tuple[nn.Module, nn.Module]:
    """A layer that takes part in every other step only."""

    class Sometimes(nn.Module):
        def __init__(self, layers: nn.Sequential) -> None:
            super().__init__()
            self.layers, self.calls = layers, 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return self.layers(x) if self.calls % 2 else self.layers[4](torch.tanh(x))

    module, expected = model(), mg.revert(model())
    wrapped = DistributedDataParallel(Sometimes(module), find_unused_parameters=True)
    train(wrapped, mg.GradientDescent(module.parameters(), lr=0.05), *halves())
    train(Sometimes(expected), torch.optim.SGD(expected.parameters(), lr=0.05), *batch())
    return module, expected


def ddp_accumulating() -> tuple[nn.Module, nn.Module]:
    """Two micro-batches a step, the first without communication."""
    module = model()
    wrapped = DistributedDataParallel(module)
    optimizer = mg.GradientDescent(module.parameters(), lr=0.05)
    parts = list(zip(*(t.chunk(2) for t in halves()), strict=True))
    for _ in range(STEPS):
        optimizer.zero_grad()
        with wrapped.no_sync():
            (mg.QuadraticLoss()(wrapped(parts[0][0]), parts[0][1]) / 2).backward()
        (mg.QuadraticLoss()(wrapped(parts[1][0]), parts[1][1]) / 2).backward()
        optimizer.step()
    return module, alone()


def fsdp(optimizer: Callable[..., Any] = mg.GradientDescent, **options: Any) -> tuple[nn.Module, nn.Module]:
    module = model()
    mesh = init_device_mesh("cpu", (WORLD,))
    for layer in module:
        if isinstance(layer, mg.Dense):
            fully_shard(layer, mesh=mesh)
    fully_shard(module, mesh=mesh)
    train(module, optimizer(module.parameters(), lr=0.05, **options), *halves(), clip=options.pop("clip", None))
    return module, alone(**options)


def converted_too_late() -> tuple[nn.Module, nn.Module]:
    """Layers that are sharded already are left to autograd, and said to be; they train on."""
    module = mg.revert(model())
    fully_shard(module, mesh=init_device_mesh("cpu", (WORLD,)))
    report = mg.conversion_report(mg.convert(module))
    assert set(report.left.values()) == {"sharded: convert before fully_shard or parallelize_module"}, report
    train(module, mg.GradientDescent(module.parameters(), lr=0.05), *halves())
    return module, alone()


def ddp_converted_inside() -> tuple[nn.Module, nn.Module]:
    """The wrapper holds the same Parameters before and after."""
    module = DistributedDataParallel(mg.revert(model()))
    optimizer = mg.GradientDescent(module.parameters(), lr=0.05)
    assert mg.conversion_report(mg.convert(module)).converted == ["module.0", "module.2", "module.4"]
    train(module, optimizer, *halves())
    return module, alone()


def tensor_parallel() -> tuple[nn.Module, nn.Module]:
    """The whole batch on both processes, the weights split between them."""
    module = model()
    plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
    parallelize_module(module, init_device_mesh("cpu", (WORLD,)), plan)
    train(module, mg.GradientDescent(module.parameters(), lr=0.05), *batch())
    return module, alone()


CASES: dict[str, Callable[[], tuple[nn.Module, nn.Module]]] = {
    "DDP": ddp,
    "DDP with momentum": lambda: ddp(momentum=0.9, weight_decay=0.01),
    "DDP with dense gradients": lambda: ddp(factored=False),
    "DDP with clipping": ddp_clipped,
    "DDP with gradients in buckets": ddp_bucket_views,
    "DDP with a static graph": ddp_static_graph,
    "DDP with unused layers": ddp_with_unused_layers,
    "DDP accumulating without communication": ddp_accumulating,
    "DDP around what is converted later": ddp_converted_inside,
    "FSDP2": fsdp,
    "FSDP2 before the conversion": converted_too_late,
    "FSDP2 with momentum": lambda: fsdp(momentum=0.9, weight_decay=0.01),
    "FSDP2 with torch.optim.SGD": lambda: fsdp(torch.optim.SGD),
    "tensor parallel": tensor_parallel,
}


def largest_difference(module: nn.Module, expected: nn.Module) -> float:
    """Over all weights, relative to the largest of them."""
    differences = []
    for p, e in zip(module.parameters(), expected.parameters(), strict=True):
        whole = p.full_tensor() if hasattr(p, "full_tensor") else p
        differences.append(float((whole - e).abs().max() / e.abs().max()))
    return max(differences)


def run_all(rank: int, rendezvous: str, results: str) -> None:
    """One of the processes. What each case came to is left in the file `results`.rank."""
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=WORLD)
    outcome: dict[str, Any] = {}
    for name, case in CASES.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", mg.FactorsLostWarning)
                outcome[name] = largest_difference(*case())
        except Exception as error:  # for the test to show
            outcome[name] = f"{type(error).__name__}: {error}"
    torch.save(outcome, f"{results}.{rank}")
    dist.destroy_process_group()
