"""Histograms of a layer's errors, gradients and weights for TensorBoard, from a sample where the layer is wide."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from manualgrad import equations
from manualgrad.factored.gradient import FactoredGradient


ENTRIES = 2**13  # more would not be visible in a picture 1000 pixels wide
BINS = 64


def thinned(x: Tensor) -> Tensor:
    """Evenly spaced rows of the matrix x, and columns of those, at most about `ENTRIES` numbers in all.

    Of a factored gradient only these are computed, from the neurons delta[:, ::k] and a.
    """
    every = max(1, -(-x.numel() // ENTRIES))
    if isinstance(x, FactoredGradient):
        rows = x.densify()[::every] if x.is_dense else equations.weight_gradient(x.delta[:, ::every], x.a)
    else:
        rows = x[::every]
    return rows[:, :: max(1, -(-rows.numel() // ENTRIES))].clone()


def write_histograms(writer: Any, layer: str, samples: Mapping[str, Tensor], step: int) -> None:
    """Adds `histogram_delta/layer`, `histogram_gradient/layer` and `histogram_weight/layer`, of the finite entries."""
    for name, sample in samples.items():
        values = sample.detach().float().flatten()
        values = values[values.isfinite()]
        if values.numel() == 0:
            continue
        low, high = (x.item() for x in values.aminmax())
        if low == high:
            low, high = low - 0.5, high + 0.5
        counts = torch.histc(values, BINS, low, high)
        writer.add_histogram_raw(
            f"histogram_{name}/{layer}",
            min=low,
            max=high,
            num=values.numel(),
            sum=values.sum().item(),
            sum_squares=values.square().sum().item(),
            bucket_limits=torch.linspace(low, high, BINS + 1)[1:].tolist(),
            bucket_counts=counts.tolist(),
            global_step=step,
        )
