"""Clipping by the common norm of gradients, some of them factors: what `clip_grad_norm_` does to dense ones."""

import pytest
import torch
from torch import Tensor, nn

import manualgrad as mg
from manualgrad.factored.clipping import Gradients, clip_by_norm


def dense(gradients: Gradients) -> list[Tensor]:
    return [g.to_dense() if isinstance(g, mg.FactoredGradient) else g.clone() for _, g in gradients]


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e30, float("inf"), float("nan")])
def test_as_pytorch_clips(size: float) -> None:
    """At 1e30 both factors are finite and their product is not: 0 times infinity is NaN, never a step of nothing."""
    torch.manual_seed(0)
    w, b = nn.Parameter(torch.zeros(6, 8)), nn.Parameter(torch.zeros(6))
    factored = mg.FactoredGradient(torch.rand(2, 6) * size, torch.rand(2, 8) * size)
    gradients: Gradients = [(w, factored), (b, torch.rand(6))]
    w.grad, b.grad = dense(gradients)
    nn.utils.clip_grad_norm_([w, b], 0.5)
    for ours, expected in zip(dense(clip_by_norm(gradients, 0.5)[0]), (w.grad, b.grad), strict=True):
        torch.testing.assert_close(ours, expected, equal_nan=True)


def test_gradients_with_one_delta_are_each_scaled_once() -> None:
    """As those by a weight and by its bias, whose input is 1."""
    torch.manual_seed(0)
    delta, w, b = torch.rand(2, 6), nn.Parameter(torch.zeros(6, 8)), nn.Parameter(torch.zeros(6, 9))
    gradients: Gradients = [
        (w, mg.FactoredGradient(delta, torch.rand(2, 8))),
        (b, mg.FactoredGradient(delta, torch.ones(2, 9))),
    ]
    w.grad, b.grad = dense(gradients)
    nn.utils.clip_grad_norm_([w, b], 0.5)
    for ours, expected in zip(dense(clip_by_norm(gradients, 0.5)[0]), (w.grad, b.grad), strict=True):
        torch.testing.assert_close(ours, expected)
