"""A gradient that stays an outer product: dC/dw = delta a^T, kept as delta and a.

`FactoredGradient` stands in `weight.grad` as a `torch.Tensor` of the weight's shape, but owns no memory of that size. What
it does when PyTorch calls an operation on it is said in `operations`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor

from manualgrad import equations
from manualgrad.autograd.torch_state import refuse_pointers
from manualgrad.factored.densify import densify
from manualgrad.factored.elementwise import by_rows
from manualgrad.factored.entries import add_entries, rows_of_tiles, tiles
from manualgrad.factored.factors import Content, Factors, check_factors, is_number, wider, without_the_rest


class FactoredGradient(Tensor):
    """scale * delta^T a, summed over pairs of factors, with the interface of a dense tensor of shape (m, n).

    Invariants: shape (m, n), contiguous, `requires_grad` False; the factors are real, on the gradient's device. Their dtype
    may be lower than the gradient's (autocast): products are taken in the gradient's dtype.
    `detach()` and `.data` share the value with the original, in-place changes included; `clone()` is a plain dense tensor.
    An operation that has no rule for factors first makes the value dense, for good and for everyone who shares it; from then
    on this is a dense tensor in all but its type, and `is_dense` says so.

    The factors are the layer's own tensors, not copies. If one of them was changed in place since the backward pass (say, an
    input buffer that was filled with the next batch), using the gradient raises RuntimeError. Writes that PyTorch does not
    count go unnoticed: through NumPy or `.data`, a batch norm's to its running statistics, a fused optimizer's to a parameter
    of which a detached part is the input. Give the layer a copy of such a buffer.

    Args:
        delta: (r, m), the layer's error; floating point.
        a: (r, n), the layer's input; the dtype and device of `delta`.
        dtype: of the gradient; by default that of the factors.
        rows_per_sample: how many consecutive rows belong to one sample; it divides r.

    Raises:
        ValueError, TypeError: factors that are not such matrices.
    """

    operations: ClassVar[dict[Any, Callable[..., Any]]] = {}  # the table: `operations` and the files it names fill it
    content: Content

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment] # operations arrive below, after decomposition

    def __new__(
        cls, delta: Tensor, a: Tensor, dtype: torch.dtype | None = None, *, rows_per_sample: int = 1
    ) -> FactoredGradient:
        check_factors(delta, a, rows_per_sample)
        content = Content((Factors.of(delta, a, rows_per_sample=rows_per_sample),))
        return cls.of((delta.size(1), a.size(1)), dtype or delta.dtype, delta.device, content)

    @classmethod
    def of(cls, shape: Any, dtype: torch.dtype, device: torch.device, content: Content) -> FactoredGradient:
        """A gradient with this content; nothing is checked or computed."""
        gradient = Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=device)
        refuse_pointers(gradient)
        gradient.content = content
        return gradient

    def like(
        self, content: Content, dtype: torch.dtype | None = None, device: torch.device | None = None
    ) -> FactoredGradient:
        """The same shape, dtype and device with other content."""
        return self.of(self.shape, dtype or self.dtype, device or self.device, content)

    @property
    def is_dense(self) -> bool:
        """Whether the factors are gone."""
        return self.content.dense is not None

    @property
    def rank(self) -> int:
        """Rows in the factors, r: the gradient's rank is at most this. 0 for a zero gradient.

        Raises:
            RuntimeError: the gradient is dense.
        """
        return sum(factors.delta.size(0) for factors in self._factors("rank"))

    @property
    def delta(self) -> Tensor:
        """(r, m), scale included: `delta.T @ a` is the gradient. Raises as `rank` does.

        In the gradient's dtype, or the factors' if that is wider; a scale is held in float32 at least.
        """
        self._factors("delta")
        return self._scaled_factors("reading delta")[0]

    @property
    def a(self) -> Tensor:
        """(r, n), in the dtype of `delta`. Raises as `rank` does."""
        self._factors("a")
        return self._scaled_factors("reading a")[1]

    def _scaled_factors(self, use: str) -> tuple[Tensor, Tensor]:
        """delta (r, m) with the scale in it, and a (r, n), in one dtype."""
        if not self.content.factors:
            m, n = self.shape
            return self.new_empty((0, m)), self.new_empty((0, n))
        dtype = self.content.dtype_of_product(self.dtype)
        if not is_number(self.content.factors[0].scale, 1):
            dtype = wider(dtype, torch.float32)
        delta, a, scale = self.content.joined(dtype, use)
        return (delta if is_number(scale, 1) else delta * scale), a

    def to_dense(self, dtype: torch.dtype | None = None, *, masked_grad: bool | None = None) -> Tensor:
        """The gradient as a plain new tensor (m, n); this one keeps its factors."""
        if self.content.dense is not None:
            return self.content.dense.to(dtype or self.dtype, copy=True)
        dense = torch.empty(self.shape, dtype=self.dtype, device=self.device)
        return self.add_to(dense, beta=0.0).to(dtype or self.dtype)

    def add_to(self, target: Tensor, alpha: float | Tensor = 1.0, beta: float | Tensor = 1.0) -> Tensor:
        """target := beta * target + alpha * gradient, in place, with no temporary of its size.

        target (m, n), any floating point dtype; alpha and beta numbers or 0-dimensional tensors; beta = 0 overwrites, NaN
        included.
        """
        return add_entries(target, self.content, self.dtype, alpha, beta)

    def tiles(self, use: str = "reading its entries") -> Iterator[tuple[slice, Tensor]]:
        """The entries as plain tensors of a few rows, a quarter of them at most, each with the rows that it is.

        A tile may be written into, and is the next one's memory: use it before that.
        """
        if self.content.factors:
            return tiles(self.content, self.dtype, use)
        dense = self.new_zeros(()).expand(self.shape) if self.content.dense is None else self.content.dense
        return ((rows, dense[rows]) for rows in rows_of_tiles(self.size(0), self.size(1), self.device))

    def per_sample_norms(self) -> Tensor:
        """(samples,): the 2-norm of each sample's part of the gradient, in float64, without forming any of the parts.

        A row of a 2-d input is a sample: |delta_i| |a_i|. For a sequence the rows of a sample are taken together:
        sqrt(sum((delta_i delta_i^T) * (a_i a_i^T))). The loss's mean over the batch is in delta: times the batch size this is
        the norm of a sample's own gradient. Samples of accumulated batches follow one another; a layer used twice in one
        forward pass counts its samples twice.

        Raises:
            RuntimeError: the gradient is dense.
        """
        norms = [torch.zeros(0, dtype=torch.float64, device=self.device)]
        for factors in self._factors("per_sample_norms()"):
            factors.check_versions("per_sample_norms()")
            samples = (-1, factors.rows_per_sample)
            delta, a = factors.delta.double().unflatten(0, samples), factors.a.double().unflatten(0, samples)
            squared = equations.inner_products(delta, a, delta, a)
            norms.append(squared.clamp(min=0).sqrt() * torch.as_tensor(factors.scale).abs())
        return torch.cat(norms)

    def renewed(self) -> FactoredGradient:
        """The same factors with the values that they have now: for one who writes into them on purpose, as a replay does."""
        factors = tuple(Factors.of(*parts[:4]) for parts in self.content.factors)
        return self.like(Content(factors, self.content.dense))

    def densify(self) -> Tensor:
        """Make the value dense, for good, and return the dense tensor itself. Further factors are added into it."""
        if self.content.dense is None:
            self.content.become_dense(self.to_dense())
        assert self.content.dense is not None
        return self.content.dense

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        operation = cls.operations.get(func)
        if operation is not None:
            result = operation(*args, **(kwargs or {}))
            if result is not NotImplemented:
                return result
        result = by_rows(cls, func, args, kwargs or {})
        return densify(cls, func, args, kwargs or {}) if result is NotImplemented else result

    # Parts of torch.Tensor that bypass the dispatcher.

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        form = "dense" if self.is_dense else f"rank={self.rank}"
        return f"FactoredGradient(shape={tuple(self.shape)}, {form}, dtype={self.dtype}, device='{self.device}')"

    @property
    def data(self) -> Any:
        return Tensor.data.__get__(self)  # type: ignore[attr-defined]

    @data.setter
    def data(self, new: Tensor) -> None:  # how Module.to replaces a gradient
        content = new.content if isinstance(new, FactoredGradient) else Content(dense=new)
        Tensor.data.__set__(self, self.of(new.shape, new.dtype, new.device, content))  # type: ignore[attr-defined]
        self.content = content

    def share_memory_(self) -> FactoredGradient:  # Module.share_memory
        for tensor in (self.content.dense, *(x for f in self.content.factors for x in (f.delta, f.a))):
            if tensor is not None:
                tensor.share_memory_()
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> FactoredGradient:
        if id(self) not in memo:
            memo[id(self)] = _rebuilt(*self._parts(Tensor.clone))
        return memo[id(self)]

    def __reduce_ex__(self, protocol: Any) -> tuple:
        return _rebuilt, self._parts(without_the_rest)

    def _parts(self, keep: Callable[[Tensor], Tensor]) -> tuple:
        factors = [f.mapped(keep, "copying it")[:4] for f in self.content.factors]
        dense = None if self.content.dense is None else keep(self.content.dense)
        return tuple(self.shape), self.dtype, str(self.device), factors, dense

    def _factors(self, wanted: str) -> tuple[Factors, ...]:
        if self.content.dense is not None:
            raise RuntimeError(
                f"{wanted} expected a gradient that still has its factors, got one that has become dense (too many rows were "
                "accumulated, or an operation needed every entry). Read it before that, or use to_dense()."
            )
        return self.content.factors


def _from_entries(name: str) -> Callable[..., Any]:
    """A method of a tensor that reaches for its memory: made dense first, a gradient has some."""
    method = getattr(Tensor, name)

    def call(self: FactoredGradient, *arguments: Any, **keywords: Any) -> Any:
        return densify(FactoredGradient, method, (self, *arguments), keywords)

    return functools.wraps(method)(call)


for _name in ("__dlpack__", "apply_", "data_ptr", "map2_", "map_", "numpy", "tolist", "untyped_storage"):
    setattr(FactoredGradient, _name, _from_entries(_name))


def _rebuilt(shape: Any, dtype: torch.dtype, device: str, factors: list, dense: Tensor | None) -> FactoredGradient:
    """What pickle and deepcopy make of a gradient's parts. Versions are counted anew."""
    restored = tuple(Factors.of(*parts) for parts in factors)
    moved = restored[0].delta if restored else dense  # torch.load may have put them elsewhere
    where = torch.device(device) if moved is None else moved.device
    return FactoredGradient.of(shape, dtype, where, Content(restored, dense))


torch.serialization.add_safe_globals([_rebuilt])  # so that torch.load(weights_only=True) accepts one
