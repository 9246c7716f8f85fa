"""Compare gradients computed by hand with autograd's, and both with a float64 truth."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from manualgrad.autograd.switch import by_autograd, something_stood_back
from manualgrad.comparison.difference import check_tolerance, coarsest, judged, widened
from manualgrad.comparison.result import Comparison
from manualgrad.dry_run import (
    RandomStates,
    check_loss_function,
    checked_loss,
    copied,
    deep_copied,
    each_tensor,
    in_brief,
)
from manualgrad.factored.requests import pass_on_requests


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
    check_tolerance(tolerance, "compare")
    arguments = inputs if isinstance(inputs, tuple) else (inputs,)
    dtype = coarsest([*model.parameters(), *(x for x in arguments if isinstance(x, Tensor))])
    with RandomStates(model) as random_states, torch.inference_mode(False), torch.enable_grad():

        def gradients(wide: bool = False) -> tuple[float, list[str], list[Tensor]]:
            random_states.rewind()
            return _gradients(model, loss, arguments, targets, wide)

        hand_loss, names, by_hand = gradients()
        with by_autograd():
            autograd_loss, _, autograd = gradients()
            truth, no_truth = None, ""
            try:
                _, _, truth = gradients(wide=True)
            except Exception as error:  # a model that makes tensors of a dtype of its own, a device without float64
                no_truth = in_brief(error)
            by_hand_at_all = something_stood_back()
            again = lambda: gradients(wide=truth is not None)[2]  # noqa: E731
            rows = judged(names, by_hand, autograd, truth, dtype, tolerance, again)
    return Comparison(tuple(rows), hand_loss, autograd_loss, by_hand_at_all, no_truth)


def _gradients(
    model: nn.Module, loss: Callable[[Any, Any], Tensor], arguments: tuple[Any, ...], targets: Any, wide: bool = False
) -> tuple[float, list[str], list[Tensor]]:
    """The loss, and names and gradients of parameters and inputs, on copies of everything; in float64 if `wide`."""
    model, loss = _copies(model, loss, wide)

    def take(x: Tensor) -> Tensor:
        return widened(copied(x)) if wide else copied(x)

    arguments = each_tensor(take, arguments)
    names, leaves = _leaves(model, arguments)
    value = checked_loss(loss(model(*arguments), each_tensor(take, targets)), "compare")
    if not leaves or not value.requires_grad:
        raise ValueError(
            "compare expected a loss that depends on a parameter with requires_grad or on a floating point input, "
            "got one that depends on neither. Unfreeze a parameter, and do not detach the outputs."
        )
    found = torch.autograd.grad(value, leaves, allow_unused=True)
    gradients = [torch.zeros_like(leaf) if g is None else g.detach() for leaf, g in zip(leaves, found, strict=True)]
    return float(value.detach()), names, gradients


def _copies(model: nn.Module, loss: Any, wide: bool) -> tuple[nn.Module, Any]:
    """The model, for whose weights factors are kept as for the original's, and the loss, copied if it is a module."""
    copy_of_model = deep_copied(model)
    pass_on_requests(model, copy_of_model)
    if isinstance(loss, nn.Module):
        loss = deep_copied(loss)
    for module in (copy_of_model, loss):
        if wide and isinstance(module, nn.Module):
            for tensor in (*module.parameters(), *module.buffers()):
                tensor.data = widened(tensor.data)
    return copy_of_model, loss


def _leaves(model: nn.Module, arguments: tuple[Any, ...]) -> tuple[list[str], list[Tensor]]:
    """What is differentiated by: the parameters that require a gradient, and all floating point and complex inputs."""
    named: list[tuple[str, Tensor]] = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    for i, x in enumerate(arguments):
        if isinstance(x, Tensor) and (x.is_floating_point() or x.is_complex()):
            named.append((f"input[{i}]" if len(arguments) > 1 else "input", x.requires_grad_()))
    return [name for name, _ in named], [leaf for _, leaf in named]
