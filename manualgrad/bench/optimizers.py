"""The optimizers by the names under which a measurement knows them."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

import manualgrad as mg


GRADIENT_DESCENT = "gradient_descent"  # mg.GradientDescent for us, torch.optim.SGD for the others
DESCENT = torch.optim.SGD, {"lr": 0.1}
OTHER = (
    Optimizer,
    torch.optim.SGD,
    torch.optim.LBFGS,
    torch.optim.SparseAdam,
)  # other options, a closure, sparse gradients
OPTIMIZERS: dict[str, tuple[type[Optimizer], dict[str, Any]]] = {
    GRADIENT_DESCENT: DESCENT,
    "sgd": DESCENT,
    "momentum": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
    **{
        kind.__name__.lower(): (kind, {})
        for kind in vars(torch.optim).values()
        if isinstance(kind, type) and issubclass(kind, Optimizer) and kind not in OTHER
    },
}
FORMS: dict[str, dict[str, Any]] = {"plain": {}, "plain, foreach": {"foreach": True}, "plain, fused": {"fused": True}}


def has_form(name: str, form: Iterable[str]) -> bool:
    """Whether the optimizer takes these options."""
    return {*form} <= {*inspect.signature(OPTIMIZERS[name][0]).parameters}


def of_torch(name: str, parameters: Iterable[nn.Parameter], form: dict[str, Any]) -> Optimizer:
    """PyTorch's own, with its default options but for SGD's learning rate."""
    kind, options = OPTIMIZERS[name]
    return kind(parameters, **options, **form)


def for_ours(name: str, parameters: Iterable[nn.Parameter], factored: bool) -> Optimizer:
    """`GradientDescent`, or PyTorch's in its fused form where it has one."""
    if name == GRADIENT_DESCENT:
        return mg.GradientDescent(parameters, lr=DESCENT[1]["lr"], factored=factored)
    return of_torch(name, parameters, {"fused": True} if has_form(name, ["fused"]) else {})
