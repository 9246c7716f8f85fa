"""`exchange_factors`: which weights of a model exchange factors, and what must be so before they can."""

from __future__ import annotations

import math
import sys
from numbers import Real
from typing import TypeVar

import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy

from manualgrad.distributed import ddp
from manualgrad.distributed.cost import measured
from manualgrad.distributed.exchange import Exchange, exchange_of, forget_copied_exchange
from manualgrad.factored import choice
from manualgrad.layers.dense import Dense


ModuleT = TypeVar("ModuleT", bound=nn.Module)


def exchange_factors(
    model: ModuleT, process_group: dist.ProcessGroup | None = None, *, bandwidth: float | None = None
) -> ModuleT:
    """Let `DistributedDataParallel` average the gradients of large `Dense` weights by their factors. Returns the model.

        dC/dw = 1/W sum_k delta_k^T a_k     over the W processes

    needs only delta_k (r_k, m) and a_k (r_k, n) of every process. They are gathered at the end of each backward pass in which
    DDP synchronises; the gradient is their mean, still a `FactoredGradient`, of the same bits in every process. It is exact:
    accumulation, clipping and optimizers go on as before. Where r_k is so large that the gradient itself costs less, or where
    one process has a dense gradient, it is all-reduced in all of them (`manualgrad.distributed.cost` has the rule).

        model = exchange_factors(model)
        model = DistributedDataParallel(model)

    The weights concerned are broadcast from rank 0 first, as DDP does with what it averages. Every process of the group calls
    this, in the same order. `join()` is refused unless `throw_on_early_termination=True`.

    Args:
        model: what DDP is going to wrap, not yet wrapped.
        process_group: that of DDP; by default, all processes.
        bandwidth: bytes a second that each process can send, for the choice; by default it is measured, once.

    Raises:
        TypeError: not a module, a wrapper, sharded weights, a bandwidth that is not a number.
        ValueError: a bandwidth that is not positive.
        RuntimeError: called twice, without an initialised process group, or in processes with different models. Later, in the
            forward pass: DDP wraps another module, wrapped it before, or uses another process group.
    """
    check_model(model)
    check_bandwidth(bandwidth)
    check_processes(process_group)
    group = process_group or dist.group.WORLD
    assert group is not None
    forget_copied_exchange(model)
    weights = exchangeable(model)
    if weights:
        parameters = list(weights.values())
        ddp.check_same_everywhere(group, parameters)
        for w in parameters:
            dist.broadcast(w.detach(), dist.get_global_rank(group, 0), group=group)
        Exchange(model, weights, group, measured(max(parameters, key=lambda w: w.numel()), group, bandwidth))
    return model


def exchangeable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights of `Dense` layers that can keep factors and that DDP has not been told to leave alone, by name.

    DDP refuses a model of which it has nothing to average: then the smallest of them stays with it.
    """
    left_alone = ddp.ignored(model)
    of_dense = {id(m._parameters.get("weight")) for m in model.modules() if isinstance(m, Dense)}
    named = {
        name: p
        for name, p in model.named_parameters()
        if id(p) in of_dense
        and p.numel() >= choice.SMALLEST_FACTORED_WEIGHT
        and p.is_floating_point()
        and not left_alone & ddp.names_of(model, [p])
    }
    mine = {id(p) for p in named.values()}
    others = [p for name, p in model.named_parameters() if name not in left_alone and id(p) not in mine]
    if named and not any(p.requires_grad for p in others):
        trained = [name for name, p in named.items() if p.requires_grad] or list(named)
        del named[min(trained, key=lambda name: named[name].numel())]
    return named


def check_model(model: nn.Module) -> None:
    """Raises TypeError or RuntimeError for a model that cannot exchange factors."""
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"exchange_factors expected a torch.nn.Module, got {type(model).__name__}. Pass the model itself."
        )
    for module in model.modules():
        if isinstance(module, DistributedDataParallel | FullyShardedDataParallel):
            raise TypeError(
                f"exchange_factors expected a model that is not wrapped yet, got {type(module).__name__}. "
                "Write DistributedDataParallel(exchange_factors(model))."
            )
    for name, p in model.named_parameters():
        if isinstance(p, DTensor):
            raise TypeError(
                f"exchange_factors expected whole parameters in every process, got {name!r} sharded (fully_shard or "
                "parallelize_module). Their gradients are averaged already: leave out exchange_factors."
            )
        if is_lazy(p):
            raise RuntimeError(
                f"exchange_factors expected initialised parameters, got {name!r} without a shape. "
                "Run a batch through the model first."
            )
    if exchange_of(model) is not None:
        raise RuntimeError(
            "exchange_factors expected a model whose factors are not exchanged yet, got one that it was called on before. "
            "Call it once, before DistributedDataParallel."
        )


def check_bandwidth(bandwidth: float | None) -> None:
    """Raises TypeError or ValueError."""
    if bandwidth is None:
        return
    if not isinstance(bandwidth, Real) or isinstance(bandwidth, bool):
        raise TypeError(
            f"exchange_factors expected `bandwidth` to be a number, got {bandwidth!r}. "
            "Pass bytes a second, such as 1.25e8 for 1 Gb/s."
        )
    if not 0 < bandwidth < math.inf:
        raise ValueError(
            f"exchange_factors expected `bandwidth` to be positive and finite, got {bandwidth!r}. "
            "Pass bytes a second, such as 1.25e8 for 1 Gb/s."
        )


def check_processes(process_group: dist.ProcessGroup | None) -> None:
    """Raises RuntimeError where there are no processes to exchange with, or DDP would hide when it synchronises."""
    if not dist.is_available() or not dist.is_initialized():
        raise RuntimeError(
            "exchange_factors expected an initialised process group, got none. "
            "Call torch.distributed.init_process_group first (torchrun sets what it needs)."
        )
    if dist.get_rank(process_group) < 0:
        raise RuntimeError(
            "exchange_factors expected a process group that this process belongs to, got one of other processes. "
            "Call it in the members only."
        )
    dynamo = sys.modules.get("torch._dynamo")
    if dynamo is not None and dynamo.config.optimize_ddp in (
        "python_reducer",
        "python_reducer_without_compiled_forward",
    ):
        raise RuntimeError(
            f"exchange_factors expected DDP's own reducer, got torch._dynamo.config.optimize_ddp={dynamo.config.optimize_ddp!r}. "
            "Set it to True, the default."
        )
