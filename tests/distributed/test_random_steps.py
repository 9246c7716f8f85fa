"""500 random steps in three processes: rows, layers, accumulation and clipping drawn anew; a watchdog ends what hangs."""

import copy
import random
from contextlib import nullcontext

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import manualgrad as mg
from manualgrad.distributed import exchange_factors
from manualgrad.factored import choice
from tests.distributed.cases import SLOW, WIDTH, Net, bits
from tests.distributed.processes import in_processes


pytestmark = pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo")
STEPS = 500


def process(rank: int, world: int) -> tuple[float, str]:
    choice.SMALLEST_FACTORED_WEIGHT = 0
    torch.manual_seed(0)
    net = Net().double()
    expected = mg.revert(copy.deepcopy(net))
    wrapper = DistributedDataParallel(exchange_factors(net, bandwidth=SLOW), find_unused_parameters=True)
    ours, theirs = (torch.optim.SGD(m.parameters(), lr=0.005, momentum=0.5) for m in (net, expected))
    draw, generator = random.Random(7), torch.Generator().manual_seed(7)
    uses = ("first", "second", "first second", "second first", "first first", "")
    worst = 0.0
    for _ in range(STEPS):
        none, micro, silent = draw.random() < 0.5, draw.choice((1, 1, 2)), draw.random() < 0.5
        if draw.random() < 0.8:
            ours.zero_grad(set_to_none=none)
            theirs.zero_grad(set_to_none=none)
        for part in range(micro):
            batches = [
                (torch.randn(draw.randrange(65), WIDTH, generator=generator, dtype=torch.float64), draw.choice(uses))
                for _ in range(world)
            ]
            with wrapper.no_sync() if silent and part < micro - 1 else nullcontext():
                x, use = batches[rank]
                (wrapper(x, use).square().sum() / 100).backward()
            (sum(expected(x, use).square().sum() for x, use in batches) / (100 * world)).backward()
        if draw.random() < 0.5:
            for module in (net, expected):
                nn.utils.clip_grad_norm_(module.parameters(), 0.5)
        ours.step()
        theirs.step()
        for p, q in zip(net.parameters(), expected.parameters(), strict=True):
            worst = max(worst, float((p - q).detach().abs().max()))
    assert all(q.isfinite().all() for q in expected.parameters())
    return worst, bits(net)


def test_random_steps() -> None:
    outcomes = in_processes(3, process)
    assert max(worst for worst, _ in outcomes) < 1e-11
    assert len({same for _, same in outcomes}) == 1
