"""Cases of test_other_cases.py whose training differs: several models, a part of the processes, half precision, an early end."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import manualgrad as mg
from manualgrad.distributed import exchange_factors
from manualgrad.factored import choice
from tests.distributed.cases import SLOW, STEPS, Net, bits, kind, rows


def distance(net: nn.Module, expected: nn.Module) -> float:
    pairs = zip(net.parameters(), expected.parameters(), strict=True)
    return max(float(((p - q).abs().max() / q.abs().max()).detach()) for p, q in pairs)


def new(seed: int = 0) -> tuple[Net, nn.Module]:
    torch.manual_seed(seed)
    net = Net().double()
    return net, mg.revert(copy.deepcopy(net))


def two_models_at_once(rank: int, world: int) -> dict[str, Any]:
    """One loss, one backward pass, two wrappers: the second model is fed by the first."""
    pairs = [new(1), new(2)]
    ours = [DistributedDataParallel(exchange_factors(net, bandwidth=SLOW)) for net, _ in pairs]
    lift = torch.ones(3, 128, dtype=torch.float64) / 3

    def train(models: list[nn.Module], ranks: Any, optimizer: Any) -> None:
        (first, second), both = models, nn.ModuleList(models)
        descent = optimizer(both.parameters(), lr=0.02)
        for step in range(STEPS):
            descent.zero_grad()
            for k in ranks:
                loss = (second(first(rows(step, k)) @ lift) - 1).square().sum() + first(rows(step, k, 1)).sum()
                (loss / (20 * len(ranks))).backward()
            descent.step()

    train(list(ours), [rank], mg.GradientDescent)
    train([expected for _, expected in pairs], range(world), torch.optim.SGD)
    joined = nn.ModuleList([net for net, _ in pairs])
    return {"difference": max(distance(*pair) for pair in pairs), "bits": bits(joined)}


def two_models_in_turns(rank: int, world: int) -> dict[str, Any]:
    """As a GAN is trained: each has an optimizer and backward passes of its own."""
    pairs = [new(1), new(2)]
    ours = [DistributedDataParallel(exchange_factors(net, bandwidth=SLOW)) for net, _ in pairs]
    descents = [
        (mg.GradientDescent(net.parameters(), lr=0.02), torch.optim.SGD(e.parameters(), lr=0.02)) for net, e in pairs
    ]
    for step in range(2 * STEPS):
        which = step % 2
        mine, reference = descents[which]
        mine.zero_grad()
        reference.zero_grad()
        (ours[which](rows(step, rank)).square().sum() / 20).backward()
        for k in range(world):
            (pairs[which][1](rows(step, k)).square().sum() / (20 * world)).backward()
        mine.step()
        reference.step()
    joined = nn.ModuleList([net for net, _ in pairs])
    return {"difference": max(distance(*pair) for pair in pairs), "bits": bits(joined)}


def a_part_of_the_processes(rank: int, world: int) -> dict[str, Any]:
    """The first and the last process train one model, those between them another, at the same time."""
    ends, between = [0, world - 1], list(range(1, world - 1))
    groups = [dist.new_group(ranks) for ranks in (ends, between)]
    members, group = (ends, groups[0]) if rank in ends else (between, groups[1])
    net, expected = new(members[0])
    if rank != members[0]:
        for p in net.parameters():
            nn.init.normal_(p.detach())
    wrapper = DistributedDataParallel(exchange_factors(net, group, bandwidth=SLOW), process_group=group)
    ours, theirs = mg.GradientDescent(net.parameters(), lr=0.02), torch.optim.SGD(expected.parameters(), lr=0.02)
    for step in range(STEPS):
        ours.zero_grad()
        theirs.zero_grad()
        (wrapper(rows(step, rank, count=1 + rank)).square().sum() / 20).backward()
        for k in members:
            (expected(rows(step, k, count=1 + k)).square().sum() / (20 * len(members))).backward()
        ours.step()
        theirs.step()
    gathered: list[Any] = [None] * len(members)
    dist.all_gather_object(gathered, bits(net), group=group)
    return {"difference": distance(net, expected), "bits": "same" if len(set(gathered)) == 1 else f"{rank}"}


def bfloat16_under_autocast(rank: int, world: int) -> dict[str, Any]:
    """Against one process that keeps the factors of everybody's batch: autograd would round each product to bfloat16."""
    torch.manual_seed(0)
    net = Net()
    expected = mg.keep_factored(copy.deepcopy(net))
    wrapper = DistributedDataParallel(exchange_factors(net, bandwidth=SLOW))
    ours = mg.GradientDescent(net.parameters(), lr=0.02)
    theirs = torch.optim.SGD(expected.parameters(), lr=0.02, foreach=False)
    seen = set()
    for step in range(STEPS):
        ours.zero_grad()
        theirs.zero_grad()
        for module, ranks in ((wrapper, [rank]), (expected, range(world))):
            for k in ranks:
                with torch.autocast("cpu", torch.bfloat16):
                    output: Tensor = module(rows(step, k).float())
                (output.float() - 1).square().sum().backward()
        gradient: Any = net.first.weight.grad
        seen |= {kind(gradient), *(str(t.dtype) for f in gradient.content.factors for t in (f.delta, f.a))}
        for p in expected.parameters():
            assert p.grad is not None
            p.grad.mul_(1 / world)
        for module in (net, expected):
            nn.utils.clip_grad_norm_(module.parameters(), 5.0)
        ours.step()
        theirs.step()
    return {"difference": distance(net, expected), "bits": bits(net), "seen": seen, "tolerance": 1e-5}


def an_early_end(rank: int, world: int) -> dict[str, Any]:
    """`join(throw_on_early_termination=True)`: all raise when one has run out of batches; before that, nothing differs."""
    net, expected = new()
    wrapper = DistributedDataParallel(exchange_factors(net, bandwidth=SLOW))
    ours, theirs = mg.GradientDescent(net.parameters(), lr=0.02), torch.optim.SGD(expected.parameters(), lr=0.02)
    said, taken = "", 0
    try:
        with wrapper.join(throw_on_early_termination=True):
            for step in range(4 + rank):
                ours.zero_grad()
                wrapper(rows(step, rank)).square().mean().backward()
                ours.step()
                taken += 1
    except RuntimeError as error:
        said = f"{error}"
    for step in range(4):
        theirs.zero_grad()
        for k in range(world):
            (expected(rows(step, k)).square().mean() / world).backward()
        theirs.step()
    return {"difference": distance(net, expected), "bits": bits(net), "taken": taken, "said": said}


CASES: dict[str, Callable[[int, int], dict[str, Any]]] = {
    "two models at once": two_models_at_once,
    "two models in turns": two_models_in_turns,
    "a part of the processes": a_part_of_the_processes,
    "bfloat16 under autocast": bfloat16_under_autocast,
    "an early end": an_early_end,
}


def run_all(rank: int, world: int) -> dict[str, Any]:
    choice.SMALLEST_FACTORED_WEIGHT = 0
    outcome: dict[str, Any] = {}
    for name, case in CASES.items():
        try:
            outcome[name] = case(rank, world)
        except Exception as error:  # for the test to show
            outcome[name] = f"{type(error).__name__}: {error}"
        dist.barrier()
    return outcome
