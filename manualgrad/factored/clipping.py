"""Clipping by the norm of all gradients together, from factors where that is cheaper than from entries."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from manualgrad.factored.gradient import FactoredGradient
from manualgrad.factored.norms import two_norm


Gradients = list[tuple[nn.Parameter, Tensor]]  # dC/dw of each parameter, dense or a FactoredGradient of one pair


def clip_by_norm(gradients: Gradients, max_norm: float, is_dense: bool = False) -> tuple[Gradients, Tensor]:
    """The gradients, scaled so that their common 2-norm is at most `max_norm`, and that norm before: the arithmetic
    of `clip_grad_norm_`.

    Factors that are larger than their product become that product first, with `is_dense` all factors. The norm is not read
    on the host.
    """
    gradients = [(p, _smaller(gradient, is_dense)) for p, gradient in gradients]
    norms = [_norm(gradient) for _, gradient in gradients]
    total = torch.linalg.vector_norm(torch.stack(norms))
    coefficient = torch.clamp(max_norm / (total + 1e-6), max=1.0)
    scaled = [(p, _scaled(gradient, coefficient, norm)) for (p, gradient), norm in zip(gradients, norms, strict=True)]
    return scaled, total


def _smaller(gradient: Tensor, is_dense: bool) -> Tensor:
    if not isinstance(gradient, FactoredGradient):
        return gradient
    m, n = gradient.shape
    return gradient if gradient.rank * (m + n) < m * n and not is_dense else gradient.to_dense()


def _norm(gradient: Tensor) -> Tensor:
    if isinstance(gradient, FactoredGradient):
        return two_norm(gradient).to(gradient.dtype)
    return torch.linalg.vector_norm(gradient)


def _scaled(gradient: Tensor, coefficient: Tensor, norm: Tensor) -> Tensor:
    if not isinstance(gradient, FactoredGradient):
        return gradient.mul_(coefficient)
    ((delta, a, *_),) = gradient.content.factors
    # A product that overflows has finite factors: what inf * 0 makes NaN entry by entry is made so here. Not in place: the
    # gradients by a weight and by its bias have one delta.
    return FactoredGradient(delta * (coefficient + (norm - norm)), a)
