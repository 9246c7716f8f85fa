"""Training in several processes beside training one model on what all of them have: the cases of test_exchange.py.

Each process has a loss of its own; DDP trains on the mean of them. The expected weights are those of one model of plain linear
layers, by autograd, which trains on that mean.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import manualgrad as mg
from manualgrad.distributed import exchange_factors
from manualgrad.distributed.cost import Costs
from manualgrad.distributed.exchange import exchange_of
from manualgrad.factored import choice


WIDTH = 128  # up to 64 rows are smaller than a gradient
SLOW = 1e3  # bytes a second, of a link on which factors are always worth it
STEPS = 6


class Net(nn.Module):
    """Three layers, of which the losses below use what they like."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = mg.Dense(WIDTH, WIDTH, activation="tanh"), mg.Dense(WIDTH, WIDTH, activation="tanh")
        self.last = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor, use: str = "first second") -> Tensor:
        for name in use.split():
            x = self.get_submodule(name)(x)
        return self.last(x)


class Checkpointed(Net):
    reentrant = False

    def forward(self, x: Tensor, use: str = "first second") -> Tensor:
        x.requires_grad_()  # which the reentrant form needs
        for name in use.split():
            x = checkpoint(self.get_submodule(name), x, use_reentrant=self.reentrant)
        return self.last(x)


class CheckpointedReentrant(Checkpointed):
    reentrant = True


class Tied(Net):
    """`second` has the weight of `first`."""

    def __init__(self) -> None:
        super().__init__()
        self.second.weight = self.first.weight


class TiedToPlain(Net):
    """A plain linear layer has the weight of `first`: its part of the gradient is dense."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.Linear(WIDTH, WIDTH)
        self.plain.weight = self.first.weight


class Output(nn.Module):
    """Returns no tensor that DDP could find; the loss is an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net()

    def forward(self, x: Tensor, use: str = "first second") -> object:
        self.result = self.net(x, use)
        return object()


class OnlyWeights(nn.Sequential):
    """All of its parameters could exchange factors: DDP must be left one."""

    def __init__(self) -> None:
        super().__init__(mg.Dense(WIDTH, WIDTH, bias=False, activation="tanh"), mg.Dense(WIDTH, 4, bias=False))

    def forward(self, x: Tensor, use: str = "") -> Tensor:
        return super().forward(x)


def rows(step: int, rank: int, micro: int = 0, count: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(1000 * step + 10 * rank + micro)
    return torch.randn(count, WIDTH, dtype=torch.float64, generator=generator)


def even(step: int, rank: int, micro: int) -> tuple[Tensor, str]:
    return rows(step, rank, micro), "first second"


def uneven(step: int, rank: int, micro: int) -> tuple[Tensor, str]:
    return rows(step, rank, micro, (5 * step + 3 * rank + micro) % 6), "first second"  # none at all, too


def sequences(step: int, rank: int, micro: int) -> tuple[Tensor, str]:
    length = 1 + (step + rank) % 3  # of other lengths in other processes
    return rows(step, rank, micro, 2 * length).unflatten(0, (2, length)), "first second"


def too_many(step: int, rank: int, micro: int) -> tuple[Tensor, str]:
    return rows(step, rank, micro, 70 if rank == step % 2 else 2), "first second"  # a dense gradient in one process


def unused(step: int, rank: int, micro: int) -> tuple[Tensor, str]:
    return rows(step, rank, micro), ("first", "second", "first second", "")[(step + rank) % 4]


def unused_everywhere(step: int, rank: int, micro: int) -> tuple[Tensor, str]:
    return rows(step, rank, micro), "first" if step % 2 else "first second"


def twice(step: int, rank: int, micro: int) -> tuple[Tensor, str]:
    return rows(step, rank, micro), "first second first" if rank else "first first second"


def plain_in_one(step: int, rank: int, micro: int) -> tuple[Tensor, str]:
    return rows(step, rank, micro), "first plain second" if rank else "first second"


@dataclass
class Case:
    batch: Callable[[int, int, int], tuple[Tensor, str]] = even
    net: Callable[[], nn.Module] = Net
    options: dict[str, Any] = field(default_factory=dict)  # of DDP
    optimizer: Callable[..., torch.optim.Optimizer] = mg.GradientDescent
    reference: Callable[..., torch.optim.Optimizer] = torch.optim.SGD
    rule: dict[str, Any] = field(default_factory=dict)  # of the optimizer
    clip: float | None = None
    clip_value: float | None = None
    steps: int = STEPS
    micro: int = 1  # batches a step
    no_sync: bool = True  # for all but the last of them
    zeroed: bool = False  # zero_grad(set_to_none=False)
    scaled: bool = False  # by GradScaler
    all_reduced: bool = False  # because that costs less
    prepare: Callable[[nn.Module, int], None] = lambda net, step: None  # before each step


def freeze_and_thaw(net: nn.Module, step: int) -> None:
    net.first.weight.requires_grad_(step % 3 != 1)  # type: ignore[union-attr]
    net.second.weight.requires_grad_(step > 1)  # type: ignore[union-attr]


FIND = {"find_unused_parameters": True}
ADAMW: dict[str, Any] = {"optimizer": torch.optim.AdamW, "reference": torch.optim.AdamW}
MOMENTUM = {"momentum": 0.9, "weight_decay": 0.01}
CASES = {
    "even": Case(),
    "uneven rows and none": Case(uneven),
    "uneven rows, all-reduced": Case(uneven, all_reduced=True),
    "sequences of other lengths": Case(sequences),
    "too many rows in one process": Case(too_many),
    "layers unused in some processes": Case(unused, options=FIND),
    "layers unused in some processes, accumulating": Case(unused, options=FIND, micro=3),
    "layers unused in all processes": Case(unused_everywhere, options=FIND),
    "layers called twice": Case(twice),
    "tied weights": Case(net=Tied),
    "tied to a plain layer": Case(net=TiedToPlain, options=FIND),
    "tied to a plain layer in one process": Case(plain_in_one, net=TiedToPlain, options=FIND),
    "accumulating in no_sync": Case(uneven, micro=3),
    "accumulating sequences in no_sync": Case(sequences, micro=3),
    "accumulating without no_sync": Case(uneven, micro=3, no_sync=False),
    "accumulating without no_sync, clipped": Case(micro=2, no_sync=False, clip=0.3, zeroed=True),
    "static graph": Case(options={"static_graph": True}),
    "bucket views": Case(uneven, options={"gradient_as_bucket_view": True}, micro=2),
    "frozen and thawed": Case(options=FIND, prepare=freeze_and_thaw),
    "zero_grad(set_to_none=False)": Case(uneven, zeroed=True, rule=MOMENTUM),
    "zero_grad(set_to_none=False), dense at times": Case(too_many, zeroed=True),
    "checkpointing": Case(net=Checkpointed),
    "reentrant checkpointing": Case(net=CheckpointedReentrant),
    "no tensor returned": Case(net=Output),
    "nothing else for DDP": Case(net=OnlyWeights),
    "momentum": Case(uneven, rule=MOMENTUM),
    "nesterov": Case(uneven, rule={"momentum": 0.9, "nesterov": True}),
    "clipping": Case(uneven, clip=0.3),
    "GradScaler": Case(uneven, scaled=True),
    "SGD loop": Case(uneven, optimizer=torch.optim.SGD, rule={"foreach": False}, clip=0.5),
    "SGD foreach": Case(uneven, optimizer=torch.optim.SGD, rule={"foreach": True, **MOMENTUM}),
    "SGD fused": Case(uneven, optimizer=torch.optim.SGD, rule={"fused": True}),
    "clipping by value": Case(uneven, clip_value=0.001),
    "clipping by value, accumulating": Case(uneven, clip_value=0.001, micro=3, rule=MOMENTUM),
    "AdamW": Case(uneven, **ADAMW),
    "AdamW fused": Case(uneven, **ADAMW, rule={"fused": True}),
    "AdamW, clipped, accumulating": Case(too_many, **ADAMW, clip=0.3, micro=2, no_sync=False),
    "30 steps": Case(unused, options=FIND, rule=MOMENTUM, steps=30),
    "30 steps of AdamW": Case(uneven, **ADAMW, steps=30),
}


def make(case: Case) -> nn.Module:
    torch.manual_seed(0)
    return case.net().double()


def loss_of(module: nn.Module, case: Case, step: int, rank: int, micro: int, rate: float) -> Tensor:
    x, use = case.batch(step, rank, micro)
    result = module(x, use)
    if not isinstance(result, Tensor):
        result = getattr(module, "module", module).result
    return rate * (result - 1).square().sum() / 20


def train(case: Case, net: nn.Module, wrapper: nn.Module | None, rank: int, world: int, seen: set[str]) -> None:
    """With a DDP wrapper on the loss of one rank, without one on the mean of all."""
    rule = case.rule
    if wrapper is None:
        rule = {k: v for k, v in rule.items() if k not in ("foreach", "fused")}
    optimizer: Any = (case.optimizer if wrapper else case.reference)(net.parameters(), lr=0.02, **rule)
    scaler = torch.amp.GradScaler("cpu", enabled=case.scaled, init_scale=2.0**10)
    for step in range(case.steps):
        case.prepare(net, step)
        optimizer.zero_grad(set_to_none=not case.zeroed)
        for micro in range(case.micro):
            silent = wrapper is not None and case.no_sync and micro < case.micro - 1
            with wrapper.no_sync() if silent else nullcontext():  # type: ignore[union-attr,operator]
                if wrapper is not None:
                    loss = loss_of(wrapper, case, step, rank, micro, 1)
                else:
                    loss = sum(loss_of(net, case, step, k, micro, 1 / world) for k in range(world))  # type: ignore[assignment]
                scaler.scale(loss).backward()
        if wrapper is not None:
            seen |= {kind(p.grad) for name, p in net.named_parameters() if name in ("first.weight", "second.weight")}
        scaler.unscale_(optimizer)
        if case.clip is not None:
            nn.utils.clip_grad_norm_(net.parameters(), case.clip)
        if case.clip_value is not None:
            nn.utils.clip_grad_value_(net.parameters(), case.clip_value)
        scaler.step(optimizer)
        scaler.update()


def kind(gradient: Tensor | None) -> str:
    if gradient is None:
        return "none"
    return "factored" if isinstance(gradient, mg.FactoredGradient) and not gradient.is_dense else "dense"


def bits(module: nn.Module) -> str:
    return hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in module.parameters())).hexdigest()


def trained(case: Case, rank: int, world: int) -> dict[str, Any]:
    expected = mg.revert(copy.deepcopy(make(case)))
    torch.manual_seed(rank)
    net = make(case)
    if rank:  # DDP and the exchange make them those of rank 0
        for p in net.parameters():
            nn.init.normal_(p.detach())
    exchange_factors(net, bandwidth=SLOW)
    if case.all_reduced:
        exchange = exchange_of(net)
        assert exchange is not None
        exchange.costs = Costs(bandwidth=1e15, flops=1e15, update=1.0, gradient=1e15)
    wrapper = DistributedDataParallel(net, **case.options)
    seen: set[str] = set()
    train(case, net, wrapper, rank, world, seen)
    train(case, expected, None, rank, world, seen)
    assert all(q.isfinite().all() for q in expected.parameters())
    difference = max(
        float(((p - q).abs().max() / q.abs().max()).detach())
        for p, q in zip(net.parameters(), expected.parameters(), strict=True)
    )
    return {"difference": difference, "bits": bits(net), "seen": seen}


def run_all(rank: int, world: int, names: list[str]) -> dict[str, Any]:
    choice.SMALLEST_FACTORED_WEIGHT = 0
    outcome: dict[str, Any] = {}
    for name in names:
        try:
            outcome[name] = trained(CASES[name], rank, world)
        except Exception as error:  # for the test to show
            outcome[name] = f"{type(error).__name__}: {error}"
        dist.barrier()
    return outcome
