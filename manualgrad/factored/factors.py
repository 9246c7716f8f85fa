"""The factors of a gradient: pairs (delta, a) with a scale, and the memory that aliases of one gradient share."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple
from weakref import WeakValueDictionary

import torch
from torch import Tensor


class Factors(NamedTuple):
    """One summand of a factored gradient: scale * delta^T a."""

    delta: Tensor  # (r, m)
    a: Tensor  # (r, n)
    scale: float | Tensor  # a number; on a GPU also a 0-dimensional tensor, which is never read on the host
    rows_per_sample: int  # 1, or the length of a sequence whose positions are rows
    versions: tuple[int, int]  # of delta and a when the gradient was made

    @classmethod
    def of(cls, delta: Tensor, a: Tensor, scale: float | Tensor = 1.0, rows_per_sample: int = 1) -> Factors:
        # `a` is an activation with a history of its own: what is computed from the factors must not become part of it. A
        # detached tensor still counts the same versions.
        delta, a = (x.detach() if x.requires_grad else x for x in (delta, a))
        return cls(delta, a, scale, rows_per_sample, (delta._version, a._version))

    def is_changed(self) -> bool:
        """Whether one of the tensors was changed in place since the gradient was made."""
        return (self.delta._version, self.a._version) != self.versions

    def check_versions(self, use: str) -> None:
        """Raises RuntimeError if one of the tensors was changed in place: they are the layer's own, not copies."""
        if not self.is_changed():
            return
        name, tensor = ("a", self.a) if self.delta._version == self.versions[0] else ("delta", self.delta)
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

    __slots__ = ("__weakref__", "dense", "factors")

    def __init__(self, factors: tuple[Factors, ...] = (), dense: Tensor | None = None) -> None:
        self.factors = factors
        self.dense = dense
        living[id(self)] = self

    def become_dense(self, dense: Tensor) -> None:
        self.dense, self.factors = dense, ()

    def check_versions(self, use: str) -> None:
        """Raises RuntimeError if a factor was changed in place since the gradient was made."""
        for factors in self.factors:
            factors.check_versions(use)

    def common_scale(self) -> float | Tensor | None:
        """The scale of every pair, if it is the same for all: then it can wait until after the product."""
        first = self.factors[0].scale
        if len(self.factors) == 1 or all(is_number(f.scale, first) for f in self.factors):  # type: ignore[arg-type]
            return first
        return None

    def dtype_of_product(self, dtype: torch.dtype) -> torch.dtype:
        """In what to multiply the factors for a gradient of that dtype: wide enough for the factors and for scales in them.

        A scale that is a tensor, or not the same for all pairs, goes into delta, which in half precision would round or vanish.
        """
        for factors in self.factors:
            dtype = wider(dtype, factors.delta.dtype)
        scale = self.common_scale()
        return wider(dtype, torch.float32) if scale is None or isinstance(scale, Tensor) else dtype

    def joined(self, dtype: torch.dtype, use: str) -> tuple[Tensor, Tensor, float | Tensor]:
        """delta (r, m) and a (r, n) of the whole sum in that dtype, and a common scale. One pair is not copied if it has it.

        Factors of a lower precision are widened here, r (m + n) numbers.
        """
        self.check_versions(use)
        if len(self.factors) == 1:
            (delta, a, only_scale, *_) = self.factors[0]
            return delta.to(dtype), a.to(dtype), only_scale
        scale = self.common_scale()
        deltas = [f.delta.to(dtype) if scale is not None else f.delta.to(dtype) * f.scale for f in self.factors]
        return torch.cat(deltas), torch.cat([f.a.to(dtype) for f in self.factors]), 1.0 if scale is None else scale


# By its id, every content that somebody holds: before an optimizer writes, factors that share the memory are copied.
living: WeakValueDictionary[int, Content] = WeakValueDictionary()


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


def wider(x: torch.dtype, y: torch.dtype) -> torch.dtype:
    """The dtype that holds what either holds."""
    return x if x == y else torch.promote_types(x, y)  # a call into PyTorch, which a recording would see


def on_host(x: float | Tensor) -> float | Tensor:
    """A number where reading it costs nothing (CPU); a tensor elsewhere, where reading it would wait for the device."""
    return float(x) if isinstance(x, Tensor) and x.device.type == "cpu" else x


def without_the_rest(x: Tensor) -> Tensor:
    """x, or a copy where x is part of something larger, say of a data set, which would be kept alive or saved with it."""
    return x.clone() if x.untyped_storage().nbytes() > x.nbytes else x
