"""A training step in several processes: `exchange_factors` beside `DistributedDataParallel` and its communication hooks.

Bytes are counted at the collectives, as what a process sends in a ring: 2 (W - 1)/W of what is all-reduced, W - 1 times what
it gives to an all-gather.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

import manualgrad as mg
from manualgrad.bench.case import Case
from manualgrad.bench.timing import peak_growth
from manualgrad.distributed import cost, exchange_factors
from manualgrad.distributed.exchange import exchange_of


FREE = float("inf")
ALWAYS_FACTORS = cost.Costs(bandwidth=FREE, flops=FREE, update=FREE, gradient=1.0)
ALWAYS_GRADIENTS = cost.Costs(bandwidth=FREE, flops=FREE, update=1.0, gradient=FREE)
OURS: dict[str, cost.Costs | None] = {
    "exchange_factors": None,  # chooses
    "always factors": ALWAYS_FACTORS,  # where they cost less memory
    "always gradients": ALWAYS_GRADIENTS,
}
DDP: dict[str, dict[str, Any]] = {
    "DDP": {},
    "DDP, bucket views": {"gradient_as_bucket_view": True},
    "DDP, fp16 hook": {},
    "DDP, bf16 hook": {},
    "DDP, PowerSGD": {
        "bucket_cap_mb": 2**20
    },  # one bucket: its hook waits in gloo's two threads, and several hang there
}
WAYS = (*OURS, *DDP)
APPROXIMATE = ("DDP, fp16 hook", "DDP, bf16 hook", "DDP, PowerSGD")
LR = 0.1
CHECKED = 3  # steps before the weights are compared and before anything is timed; PowerSGD begins with the third


class SentBytes(TorchDispatchMode):
    """Counts what this process sends in the collectives of its group."""

    def __init__(self, world: int) -> None:
        super().__init__()
        self.world, self.total = world, 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            name = func._schema.name
            if name == "c10d::allreduce_":
                self.total += 2 * (self.world - 1) / self.world * sum(tensor.nbytes for tensor in args[0])
            elif name == "c10d::_allgather_base_":
                self.total += (self.world - 1) * args[1].nbytes
            else:
                raise NotImplementedError(f"{name} is not counted. Say here what a process sends in it.")
        return func(*args, **(kwargs or {}))


def make(name: str, case: Case, rank: int) -> tuple[Callable[[], None], nn.Module]:
    """One step of that way on the rows of this process, and the model. All processes call it in the same order."""
    ours = name in OURS
    model = _model(case, ours)
    optimizer: torch.optim.Optimizer
    if ours:
        exchange_factors(model)
        exchange, costs = exchange_of(model), OURS[name]
        if exchange is not None and costs is not None:
            exchange.costs = costs
        optimizer = mg.GradientDescent(model.parameters(), lr=LR)
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=LR, fused=True)
    wrapper = DistributedDataParallel(model, **DDP.get(name, {}))
    if name == "DDP, fp16 hook":
        wrapper.register_comm_hook(None, default_hooks.fp16_compress_hook)
    elif name == "DDP, bf16 hook":
        wrapper.register_comm_hook(None, default_hooks.bf16_compress_hook)
    elif name == "DDP, PowerSGD":
        state = powerSGD_hook.PowerSGDState(None, matrix_approximation_rank=1, start_powerSGD_iter=2)
        wrapper.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
    inputs, targets = _batch(case, rank)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.mse_loss(wrapper(inputs), targets).backward()
        optimizer.step()

    return step, model


def _model(case: Case, by_hand: bool) -> nn.Module:
    net = case.net
    assert net is not None
    torch.manual_seed(0)
    return net.dense() if by_hand else net.plain()


def _batch(case: Case, rank: int) -> tuple[Tensor, Tensor]:
    net = case.net
    assert net is not None
    generator = torch.Generator().manual_seed(rank)
    return torch.randn(case.batch, net.sizes[0], generator=generator), torch.randn(
        case.batch, net.sizes[-1], generator=generator
    )


def times(rank: int, world: int, names: Sequence[str], case: Case, seconds: float) -> dict[str, Any]:
    """By way: seconds of a step (median over the rounds of the slowest process), bytes sent, weights that sent factors."""
    steps: dict[str, Callable[[], None]] = {}
    skipped, sent, factored, once = {}, {}, {}, {}
    costs, expected, start = None, None, _joined(_model(case, False))
    for name in names:
        try:
            step, model = make(name, case, rank)
        except (TypeError, RuntimeError) as error:  # DDP refuses a hook that the backend cannot carry
            if name not in APPROXIMATE:
                raise
            skipped[name] = f"{error}"
            continue
        for _ in range(CHECKED - 1):
            step()
        last = _slowest(step, 1)
        if name not in APPROXIMATE:
            weights = _joined(model)
            expected = weights if expected is None else expected
            if not torch.dist(weights, expected) < 0.01 * torch.dist(expected, start):
                raise RuntimeError(
                    f"The benchmark expected the same weights from every way, got others from {name!r} on {case}. "
                    "Its figures would mean nothing; please report this."
                )
        with SentBytes(world) as counted:
            step()
        sent[name], steps[name], once[name] = counted.total, step, last
        gradients = [p.grad for p in model.parameters() if p.dim() == 2]
        factored[name] = sum(isinstance(g, mg.FactoredGradient) and not g.is_dense for g in gradients)
        exchange = exchange_of(model)
        if name == "exchange_factors" and exchange is not None:
            costs = exchange.costs._asdict()
    return {
        "seconds": _in_turns(steps, once, seconds),
        "bytes": sent,
        "factored": factored,
        "skipped": skipped,
        "costs": costs,
        "latency": cost.shortest(lambda: dist.all_reduce(torch.ones(1))) / max(1, 2 * (world - 1)),
        "forward_and_delta": _forward_and_delta(case),
    }


def _joined(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def _in_turns(
    steps: dict[str, Callable[[], None]], once: dict[str, float], seconds: float, rounds: int = 3
) -> dict[str, float]:
    """Each way has so many rounds, in turns, with as many steps in each as its share of the seconds allows."""
    counts = {name: max(1, round(seconds / len(steps) / rounds / once[name])) for name in steps}
    blocks: dict[str, list[float]] = {name: [] for name in steps}
    order = list(steps)
    for _ in range(rounds):
        for name in order:
            blocks[name].append(_slowest(steps[name], counts[name]))
        order.append(order.pop(0))
    return {name: statistics.median(values) for name, values in blocks.items()}


def _slowest(step: Callable[[], None], count: int) -> float:
    """Seconds of one of so many steps, in the process that takes longest: the same number in all of them."""
    dist.barrier()
    start = time.perf_counter()
    for _ in range(count):
        step()
    taken = torch.tensor((time.perf_counter() - start) / count, dtype=torch.float64)
    dist.all_reduce(taken, dist.ReduceOp.MAX)
    return taken.item()


def _forward_and_delta(case: Case) -> float:
    """Seconds of what every way does: the passes without the gradients of the weights."""
    model = _model(case, False)
    for p in model.parameters():
        p.requires_grad_(p.dim() == 1)
    inputs, targets = _batch(case, 0)
    return cost.shortest(lambda: nn.functional.mse_loss(model(inputs), targets).backward())


def memory(rank: int, world: int, name: str, case: Case) -> int | None:
    """Peak bytes of this process in a few steps above its model and batch (None where the system does not tell)."""
    make(name, Case("192-192-8 relu", 2), rank)[0]()  # the libraries' own buffers
    step, _ = make(name, case, rank)
    return peak_growth(step, case.device)


TASKS: dict[str, Callable[..., Any]] = {"times": times, "memory": memory}


def _process(request: dict[str, Any]) -> None:
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    warnings.filterwarnings("ignore", module="torch")  # of hooks and of group names that are going to change
    torch.set_num_threads(request["threads"])
    rank, world = request["rank"], request["world"]
    rendezvous, limit = f"file://{request['folder']}/rendezvous", timedelta(seconds=300)
    dist.init_process_group("gloo", rendezvous, rank=rank, world_size=world, timeout=limit)
    arguments = request["arguments"] | {"case": Case(*request["arguments"]["case"])}
    result = TASKS[request["task"]](rank, world, **arguments)
    dist.barrier()
    dist.destroy_process_group()
    print(json.dumps(result))


def _end_with_the_parent() -> None:
    os.read(sys.stdin.fileno(), 1)  # not through sys.stdin, whose lock the end of Python would wait for
    os._exit(1)


if __name__ == "__main__":
    _process(json.loads(sys.argv[1]))
