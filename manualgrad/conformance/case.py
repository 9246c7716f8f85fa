"""The layer under test and its reference, as functions of the same tensors."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from manualgrad.comparison.difference import widened


class AsFunction:
    """A function or module as a function of inputs and parameters. A module's buffers are copied in each call."""

    def __init__(self, subject: Any, inputs: int, parameters: Sequence[str]) -> None:
        self.subject, self.inputs, self.parameters = subject, inputs, parameters
        self.is_module = isinstance(subject, nn.Module)  # torch.compile cannot ask that of Function.apply in torch 2.6

    def __call__(self, *arguments: Any) -> Any:
        if not self.is_module:
            return self.subject(*arguments)
        inputs, values = arguments[: self.inputs], arguments[self.inputs :]
        floats = [x.dtype for x in arguments if isinstance(x, Tensor) and x.is_floating_point()]
        wide = floats[0] if floats else None  # next(..., None) cannot be compiled before torch 2.7
        buffers = {
            name: buffer.clone().to(wide) if wide and buffer.is_floating_point() else buffer.clone()
            for name, buffer in self.subject.named_buffers()
        }
        state = {**buffers, **dict(zip(self.parameters, values, strict=True))}
        return torch.func.functional_call(self.subject, state, inputs)


class Case:
    """Layer and reference, and the values that both are called with: the inputs, then the layer's parameters."""

    def __init__(self, layer: Any, reference: Any, inputs: tuple[Any, ...]) -> None:
        self.original = layer
        layer, reference = _callable(layer, "layer"), _callable(reference, "reference")
        named = dict(layer.named_parameters()) if isinstance(layer, nn.Module) else {}
        if isinstance(reference, nn.Module):
            _check_parameters(named, dict(reference.named_parameters()))
        self.given = inputs
        self.takes_parameters = bool(named) and not isinstance(reference, nn.Module)
        self.layer = AsFunction(layer, len(inputs), list(named))
        self.reference = AsFunction(reference, len(inputs), list(named))
        self.values: list[Any] = [*inputs, *named.values()]
        self.names = [f"input[{i}]" if len(inputs) > 1 else "input" for i in range(len(inputs))] + list(named)
        self.differentiable = [i for i, x in enumerate(self.values) if is_differentiable(x)]
        if not self.differentiable:
            raise ValueError(
                "check_backward expected a floating point or complex input, or a module with parameters, got none. "
                "Pass the tensors that the layer is called with."
            )

    def leaves(self, dtype: torch.dtype | None = None, which: Sequence[int] | None = None) -> list[Any]:
        """Fresh copies of all values, in `dtype` where they are differentiable; those in `which` require a gradient."""
        which = self.differentiable if which is None else which
        leaves = [x.detach().clone() if isinstance(x, Tensor) else x for x in self.values]
        for i in self.differentiable:
            leaves[i] = leaves[i].to(dtype or leaves[i].dtype).requires_grad_(i in which)
        return leaves

    def with_rows_as_the_first(self) -> list[int]:
        """Which inputs have as many rows as the first, a tensor of at least one axis: they may belong to the same samples."""
        tensors = [(i, x) for i, x in enumerate(self.given) if isinstance(x, Tensor) and x.dim() > 0]
        return [i for i, x in tensors if x.size(0) == self.values[0].size(0)]

    def gradient_names(self, where: str = "") -> list[str]:
        """What to call the gradients by all that is differentiable."""
        return [f"{where}the gradient by {self.names[i]}" for i in self.differentiable]

    def result_names(self, results: Sequence[Tensor], where: str = "") -> list[str]:
        """What to call outputs and gradients together, as `outputs_and_gradients` returns them."""
        return output_names(len(results) - len(self.differentiable), where) + self.gradient_names(where)

    def wide(self, which: Sequence[int] | None = None) -> list[Any]:
        """`leaves` in float64, or complex128."""
        is_complex = any(self.values[i].is_complex() for i in self.differentiable)
        return self.leaves(torch.complex128 if is_complex else torch.float64, which)

    def exact(self) -> list[Tensor]:
        """The reference's outputs and gradients, in float64 or complex128."""
        return outputs_and_gradients(self.reference, self.wide())

    def exact_gradients(self) -> list[Tensor]:
        return gradients_of(self.reference, self.wide())


def is_differentiable(x: Any) -> bool:
    return isinstance(x, Tensor) and (x.is_floating_point() or x.is_complex())


def outputs(function: Callable[..., Any], arguments: Sequence[Any]) -> list[Tensor]:
    """All tensors that the function returns. Its random numbers are the same in every call."""
    torch.manual_seed(0)
    return [x for x in tree_leaves(function(*arguments)) if isinstance(x, Tensor)]


def output_names(number: int, where: str = "") -> list[str]:
    return [f"{where}the output"] if number == 1 else [f"{where}output[{i}]" for i in range(number)]


def upstream(results: Sequence[Tensor]) -> list[Tensor]:
    """An upstream gradient for each result: random, so that no symmetry hides a mistake."""
    generator = torch.Generator().manual_seed(1)
    wide = [torch.complex128 if x.is_complex() else torch.float64 for x in results]  # drawn alike for every dtype
    drawn = [torch.randn(x.shape, dtype=dtype, generator=generator) for x, dtype in zip(results, wide, strict=True)]
    return [g.to(x.device, x.dtype) for g, x in zip(drawn, results, strict=True)]


def gradients(
    results: Sequence[Tensor], leaves: Sequence[Any], sent: Sequence[Tensor] | None = None, **options: Any
) -> list[Tensor]:
    """The gradients by all leaves that require one, zeros where nothing arrives."""
    results = [x for x in results if x.requires_grad]
    wanted = [x for x in leaves if isinstance(x, Tensor) and x.requires_grad]
    if not results:
        return [torch.zeros_like(x) for x in wanted]
    sent = upstream(results) if sent is None else sent
    found = torch.autograd.grad(results, wanted, sent, allow_unused=True, **options)
    dense = [g.to_dense() if g is not None and g.is_sparse else g for g in found]  # nn.Embedding(sparse=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(wanted, dense, strict=True)]


def outputs_and_gradients(function: Callable[..., Any], leaves: Sequence[Any]) -> list[Tensor]:
    results = outputs(function, leaves)
    return [*(x.detach() for x in results), *gradients(results, leaves)]


def gradients_of(function: Callable[..., Any], leaves: Sequence[Any]) -> list[Tensor]:
    return gradients(outputs(function, leaves), leaves)


def run_on(function: Callable[..., Any], values: Sequence[Any], wide: bool = False) -> list[Tensor]:
    """Outputs and gradients for these values as leaves; in float64 or complex128 if `wide`."""
    leaves = [widened(x) if wide and is_differentiable(x) else x for x in values]
    return outputs_and_gradients(function, [x.detach().requires_grad_() if is_differentiable(x) else x for x in leaves])


def _callable(subject: Any, role: str) -> Any:
    if isinstance(subject, type) and issubclass(subject, torch.autograd.Function):
        return subject.apply
    if isinstance(subject, torch.autograd.Function):
        name = type(subject).__name__
        raise TypeError(
            f"check_backward expected `{role}` to be a Function's class, got an instance. Pass {name} or {name}.apply."
        )
    expected = f"check_backward expected `{role}` to be a function, a module or an autograd.Function, got"
    if isinstance(subject, Tensor):
        order = "Pass the same computation before the inputs: check_backward(layer, reference, *inputs)."
        raise TypeError(f"{expected} a tensor of shape {tuple(subject.shape)}. {order}")
    if isinstance(subject, type) or not callable(subject):
        raise TypeError(f"{expected} {subject!r}. Pass an instance of a module, not its class.")
    return subject


def _check_parameters(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    shapes = [{name: tuple(p.shape) for name, p in parameters.items()} for parameters in (ours, theirs)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"check_backward expected a reference with the layer's parameters {shapes[0]}, got {shapes[1]}. "
            "Name and shape them alike, or pass a function (*inputs, *parameters) as the reference."
        )
