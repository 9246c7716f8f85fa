"""Compare every gradient by hand with built-in autograd's, and both with a float64 truth."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from manualgrad.autograd.switch import by_autograd, something_stood_back
from manualgrad.comparison.result import Comparison, Row
from manualgrad.dry_run import RandomStates, check_loss_function, checked_loss, copied, deep_copied, each_tensor
from manualgrad.factored.gradient import FactoredGradient
from manualgrad.factored.requests import pass_on_requests


__all__ = ["Comparison", "Row", "compare"]


def compare(
    model: nn.Module,
    loss: Callable[[Any, Any], Tensor],
    inputs: Tensor | tuple[Any, ...],
    targets: Any,
    tolerance: float | None = None,
) -> Comparison:
    """Compute every gradient of `loss(model(inputs), targets)` three ways and set them side by side.

    By hand: the model as it is. By autograd: the same model and loss with every backward pass that is written by hand
    switched off, so that a `Dense` is a plain linear layer and its activation. Truth: the latter in float64.

    Works on copies: the model, the loss if it is a module, gradients, buffers and training flag, and torch's, Python's
    and NumPy's random states, are left as they were. All three ways see the same random numbers (dropout), as far as a device
    draws the same ones in float64.

    Where an optimizer has asked for factored gradients (`GradientDescent`, `keep_factored`), so does the comparison: what is
    compared is then the product of the factors that training would use, and the row says so.

    Args:
        model: any module; only gradients through `Dense`, `dense` and this package's losses are by hand.
        loss: (outputs, targets) -> a real 0-dimensional tensor, the package's or any other.
        inputs: what the model is called with: a tensor, or a tuple of positional arguments.
        targets: what the loss is called with.
        tolerance: largest relative difference that counts as rounding. By default 1e-12 in float64, 1e-5 in float32,
            2e-3 in float16, 2e-2 in bfloat16.

    Returns:
        A `Comparison`: a row for every parameter that requires a gradient and for every floating point input.

    Raises:
        ValueError: the loss is not a single real number, or depends on nothing that takes a gradient; a tolerance below 0.
        TypeError: `model` is not a module, or `loss` not callable, or a class.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"compare expected `model` to be a torch.nn.Module, got {type(model).__name__}. Pass the model itself."
        )
    check_loss_function(loss, "compare")
    if tolerance is not None and not (isinstance(tolerance, Real) and tolerance >= 0):
        raise ValueError(
            f"compare expected `tolerance` to be a number >= 0 or None, got {tolerance!r}. Pass for example tolerance=1e-5."
        )
    arguments = inputs if isinstance(inputs, tuple) else (inputs,)
    with RandomStates(model) as random_states, torch.inference_mode(False), torch.enable_grad():
        hand_loss, names, by_hand = _gradients(model, loss, arguments, targets)
        with by_autograd():
            random_states.rewind()
            autograd_loss, _, autograd = _gradients(model, loss, arguments, targets)
            random_states.rewind()
            _, _, truth = _gradients(model, loss, arguments, targets, widened=True)
            by_hand_at_all = something_stood_back()
    rows = (_row(*row, tolerance) for row in zip(names, by_hand, autograd, truth, strict=True))
    return Comparison(tuple(rows), hand_loss, autograd_loss, by_hand_at_all)


# What rounding may do to a gradient, relative to its largest entry.
_TOLERANCE = {
    torch.float64: 1e-12,
    torch.complex128: 1e-12,
    torch.float32: 1e-5,
    torch.complex64: 1e-5,
    torch.float16: 2e-3,
    torch.bfloat16: 2e-2,
}


def _gradients(
    model: nn.Module,
    loss: Callable[[Any, Any], Tensor],
    arguments: tuple[Any, ...],
    targets: Any,
    widened: bool = False,
) -> tuple[float, list[str], list[Tensor]]:
    """The loss, and names and gradients of parameters and inputs, on copies of everything; in float64 if `widened`."""
    original, model = model, deep_copied(model)
    pass_on_requests(original, model)
    loss = deep_copied(loss) if isinstance(loss, nn.Module) else loss
    if widened:
        for module in (model, loss):
            for tensor in (*module.parameters(), *module.buffers()) if isinstance(module, nn.Module) else ():
                tensor.data = _widened(tensor.data)
    take = _widened_copy if widened else copied
    arguments = tuple(_leaf(argument) for argument in each_tensor(take, arguments))
    named: list[tuple[str, Tensor]] = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    named += [
        (f"input[{i}]" if len(arguments) > 1 else "input", x)
        for i, x in enumerate(arguments)
        if isinstance(x, Tensor) and x.requires_grad
    ]
    names, leaves = [name for name, _ in named], [leaf for _, leaf in named]
    value = checked_loss(loss(model(*arguments), each_tensor(take, targets)), "compare")
    if not leaves or not value.requires_grad:
        raise ValueError(
            "compare expected a loss that depends on a parameter with requires_grad or on a floating point input, "
            "got one that depends on neither. Unfreeze a parameter, and do not detach the outputs."
        )
    gradients = torch.autograd.grad(value, leaves, allow_unused=True)
    zeros_where_unused = [
        torch.zeros_like(leaf) if g is None else g.detach() for leaf, g in zip(leaves, gradients, strict=True)
    ]
    return float(value.detach()), names, zeros_where_unused


def _widened(x: Tensor) -> Tensor:
    if x.is_complex():
        return x.to(torch.complex128)
    return x.to(torch.float64) if x.is_floating_point() else x


def _widened_copy(x: Tensor) -> Tensor:
    return _widened(copied(x))


def _leaf(x: Any) -> Any:
    return x.requires_grad_() if isinstance(x, Tensor) and (x.is_floating_point() or x.is_complex()) else x


def _row(name: str, by_hand: Tensor, autograd: Tensor, truth: Tensor, tolerance: float | None) -> Row:
    if tolerance is None:
        tolerance = _TOLERANCE[autograd.dtype]
    factored = isinstance(by_hand, FactoredGradient) and not by_hand.is_dense
    if isinstance(by_hand, FactoredGradient):
        by_hand = by_hand.to_dense()
    difference, scale = _largest_difference(by_hand, autograd), _largest(autograd)
    error_by_hand = _relative(_largest_difference(by_hand, truth), _largest(truth))
    error_by_autograd = _relative(_largest_difference(autograd, truth), _largest(truth))
    relative = _relative(difference, scale)
    ok = relative <= tolerance or error_by_hand <= 2 * error_by_autograd < 1  # beyond 1 the truth tells nothing
    not_finite = int((~by_hand.isfinite() & _same(by_hand, autograd)).sum())
    if 0 < not_finite == autograd.numel():  # a difference of 0 would claim what nobody has seen
        difference, relative, ok = math.nan, math.nan, False
        if not truth.isfinite().any():
            error_by_hand = error_by_autograd = math.nan
    errors = (difference, relative, error_by_hand, error_by_autograd)
    return Row(name, tuple(autograd.shape), *errors, ok, factored, not_finite)


def _largest(x: Tensor) -> float:
    """max |x| over the finite entries; 0 if there are none."""
    x = x[torch.isfinite(x)]
    return float(x.abs().max()) if x.numel() else 0.0


def _largest_difference(x: Tensor, y: Tensor) -> float:
    """max |x - y|. Equal infinities and NaN on both sides differ by 0; infinity or NaN on one side only, by infinity."""
    x, y = _widened(x), _widened(y)
    differences = (x - y).abs()[~_same(x, y)].nan_to_num(nan=math.inf, posinf=math.inf)
    return float(differences.max()) if differences.numel() else 0.0


def _same(x: Tensor, y: Tensor) -> Tensor:
    return (x == y) | (x.isnan() & y.isnan())


def _relative(difference: float, scale: float) -> float:
    if difference == 0:
        return 0.0
    return difference / scale if scale > 0 else float("inf")
