"""The factors of a gradient: pairs (delta, a) with a scale, and the memory that aliases of one gradient share."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Factors(NamedTuple):
    """One summand of a factored gradient: scale * delta^T a."""

    delta: Tensor  # (r, m)
    a: Tensor  # (r, n)
    scale: float | Tensor  # a number, or a 0-dimensional tensor that is never read on the host
    rows_per_sample: int  # 1, or the length of a sequence whose positions are rows
    versions: tuple[int, int]  # of delta and a when the gradient was made

    @classmethod
    def of(cls, delta: Tensor, a: Tensor, scale: float | Tensor = 1.0, rows_per_sample: int = 1) -> Factors:
        # `a` is an activation with a history of its own: what is computed from the factors must not become part of it. A
        # detached tensor still counts the same versions.
        delta, a = (x.detach() if x.requires_grad else x for x in (delta, a))
        return cls(delta, a, scale, rows_per_sample, (delta._version, a._version))

    def check_versions(self, use: str) -> None:
        """Raises RuntimeError if one of the tensors was changed in place: they are the layer's own, not copies."""
        for name, tensor, version in (("delta", self.delta, self.versions[0]), ("a", self.a, self.versions[1])):
            if tensor._version != version:
                raise RuntimeError(
                    f"A factored gradient expected its factor `{name}` {tuple(tensor.shape)} unchanged until its use ({use}), "
                    "got one changed in place since the backward pass: the gradient would be wrong. Fill input buffers only "
                    "after optimizer.step() and zero_grad(), pass the layer a copy (input.clone()), or use "
                    "GradientDescent(..., factored=False)."
                )

    def mapped(self, function: Callable[[Tensor], Tensor], use: str) -> Factors:
        """The same factors with the function applied to their tensors."""
        self.check_versions(use)
        scale = function(self.scale) if isinstance(self.scale, Tensor) else self.scale
        return Factors.of(function(self.delta), function(self.a), scale, self.rows_per_sample)


class Content:
    """What a gradient's value is: `dense` if that is there, else the sum of `factors`. Shared by all that alias it.

    `factors` is replaced, never changed, so that two contents may hold the same one.
    """

    __slots__ = ("dense", "factors")

    def __init__(self, factors: tuple[Factors, ...] = (), dense: Tensor | None = None) -> None:
        self.factors = factors
        self.dense = dense

    def become_dense(self, dense: Tensor) -> None:
        self.dense, self.factors = dense, ()

    def common_dtype(self) -> torch.dtype | None:
        """The dtype of all factors, if they can be multiplied in it as they are: a scale on a GPU would round, or vanish."""
        dtypes = {f.delta.dtype for f in self.factors}
        one_number = len(self.factors) == 1 and not isinstance(self.factors[0].scale, Tensor)
        return (
            dtypes.pop()
            if len(dtypes) == 1 and (one_number or all(is_number(f.scale, 1) for f in self.factors))
            else None
        )

    def joined(self, dtype: torch.dtype, use: str) -> tuple[Tensor, Tensor, float | Tensor]:
        """delta (r, m) and a (r, n) of the whole sum in that dtype, and a common scale. One pair is not copied if it has it.

        Factors of a lower precision are widened here, r (m + n) numbers, unless they are wanted as they are (`common_dtype`).
        """
        for factors in self.factors:
            factors.check_versions(use)
        if len(self.factors) == 1:
            (delta, a, scale, *_) = self.factors[0]
            return delta.to(dtype), a.to(dtype), scale
        deltas = [f.delta.to(dtype) if is_number(f.scale, 1) else f.delta.to(dtype) * f.scale for f in self.factors]
        return torch.cat(deltas), torch.cat([f.a.to(dtype) for f in self.factors]), 1.0


def check_factors(delta: Tensor, a: Tensor, rows_per_sample: int) -> None:
    """Raises ValueError or TypeError if `FactoredGradient` cannot be made of these."""
    if delta.dim() != 2 or a.dim() != 2 or delta.size(0) != a.size(0):
        raise ValueError(
            "FactoredGradient expected factors delta of shape (r, m) and a of shape (r, n), "
            f"got {tuple(delta.shape)} and {tuple(a.shape)}. Flatten the batch axes of both."
        )
    if delta.dtype != a.dtype or not delta.is_floating_point() or delta.device != a.device:
        raise TypeError(
            "FactoredGradient expected real floating point factors of one dtype on one device, got "
            f"{delta.dtype} on {delta.device} and {a.dtype} on {a.device}. Convert one of them with .to(...)."
        )
    if rows_per_sample < 1 or delta.size(0) % rows_per_sample:
        raise ValueError(
            f"FactoredGradient expected `rows_per_sample` to divide the {delta.size(0)} rows of its factors, "
            f"got {rows_per_sample}. Pass the length of one sample's sequence, or 1."
        )


def is_number(x: float | Tensor, number: float) -> bool:
    """Whether x is that number, as far as that can be told without waiting for a device."""
    return not isinstance(x, Tensor) and x == number


def on_host(x: float | Tensor) -> float | Tensor:
    """A number where reading it costs nothing (CPU); a tensor elsewhere, where reading it would wait for the device."""
    return float(x) if isinstance(x, Tensor) and x.device.type == "cpu" else x
