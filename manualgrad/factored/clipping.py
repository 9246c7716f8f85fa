"""Clipping by the norm of all gradients together, from factors where that is cheaper than from entries."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from manualgrad import equations
from manualgrad.factored.gradient import FactoredGradient
from manualgrad.factored.norms import two_norm


# dC/db; dC/dw; or the factors of dC/dw, delta (r, m) and a (r, n)
Gradient = Tensor | tuple[Tensor, Tensor]
Gradients = list[tuple[nn.Parameter, Gradient]]


def clip_by_norm(gradients: Gradients, max_norm: float) -> Gradients:
    """The gradients, scaled in place so that their common 2-norm is at most `max_norm`: `clip_grad_norm_`'s arithmetic.

    Factors that are larger than their product become that product first. The norm is not read on the host.
    """
    gradients = [(p, _smaller(gradient)) for p, gradient in gradients]
    norms = [_norm(gradient) for _, gradient in gradients]
    total = torch.linalg.vector_norm(torch.stack(norms))
    coefficient = torch.clamp(max_norm / (total + 1e-6), max=1.0)
    for (_, gradient), norm in zip(gradients, norms, strict=True):
        if isinstance(gradient, Tensor):
            gradient.mul_(coefficient)
        else:  # a product that overflows has finite factors: what inf * 0 makes NaN entry by entry is made so here
            gradient[0].mul_(coefficient + (norm - norm))
    return gradients


def _norm(gradient: Gradient) -> Tensor:
    if isinstance(gradient, Tensor):
        return torch.linalg.vector_norm(gradient)
    return two_norm(FactoredGradient(*gradient)).to(gradient[0].dtype)


def as_tensor(gradient: Gradient) -> Tensor:
    return gradient if isinstance(gradient, Tensor) else FactoredGradient(*gradient)


def _smaller(gradient: Gradient) -> Gradient:
    if isinstance(gradient, Tensor):
        return gradient
    delta, a = gradient
    (r, m), n = delta.shape, a.size(1)
    return gradient if r * (m + n) < m * n else equations.weight_gradient(delta, a)
