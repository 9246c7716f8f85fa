"""Record every z, a, delta, gradient and update of one training step."""

import copy
import sys
from collections.abc import Callable, Container, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from manualgrad.conversion.obstacles import is_linear_like
from manualgrad.dry_run import RandomStates, check_loss_function, checked_loss, copied, deep_copied, graph_nodes
from manualgrad.explain.printable import printable
from manualgrad.explain.traced_step import TracedLayer
from manualgrad.layers.activation_modules import ByHand
from manualgrad.layers.dense import Dense
from manualgrad.optim.gradient_descent import GradientDescent
from manualgrad.tracing.dense_calls import TracedCall, listen, listen_to_activation
from manualgrad.tracing.optimizer_copy import common_lr, copied_optimizer, described
from manualgrad.tracing.result import Trace


__all__ = ["Trace", "TracedLayer", "trace"]


def trace(
    model: nn.Module,
    loss: Callable[[Any, Any], Tensor],
    inputs: Tensor,
    targets: Tensor,
    optimizer: Optimizer | None = None,
) -> Trace:
    """Run one training step on copies and return every number in it: for each `Dense`, in the order of their calls,

        z, a = sigma(z), sigma'(z), delta, dC/dw = delta a^T, dC/db = delta, and w and b before and after the update.

    Forward, backward and update run as they would in training, from gradients of zero and with the random numbers that the
    next real step will see: that step gives the same weights, bit for bit. Only z and delta, which a layer does not keep, are
    computed once more, by the functions and from the numbers that the layer used. Hooks on modules are called, with the
    copies; copies of parameters and of the optimizer have no hooks.

    Nothing is changed: the model, its gradients, buffers, hooks and training flag, the loss, the optimizer, and torch's,
    Python's and NumPy's random states are left as they were.

    Args:
        model: any module with `Dense` layers, called as `model(inputs)`; must return a tensor.
        loss: (outputs, targets) -> a real 0-dimensional tensor, the package's or any other.
        inputs, targets: one batch.
        optimizer: whose step is shown, over parameters of the model; by default plain gradient descent with lr=0.1 over
            all of them. `GradientDescent` may update a wide weight from its factors, without dC/dw: with
            `factored=False` the new w is w - eta dC/dw to the last bit.

    Returns:
        A `Trace`, detached, on the model's device.

    Raises:
        TypeError: an argument, or what the model returned, is of the wrong type.
        ValueError: no `Dense` in the model, or none that is called; a loss that is not one real number, depends on no
            parameter, or reads parameters of the model itself; an optimizer of other parameters, or one whose step needs
            the loss several times.
    """
    _check_types(model, loss, inputs, targets)
    _check_layers(model, loss)
    originals = {id(p) for p in (*model.parameters(), *_parameters_of(loss))}
    loss_name = getattr(loss, "__name__", type(loss).__name__)
    with RandomStates(model), torch.inference_mode(False), torch.enable_grad(), _as_written():
        model, loss, step = _copies(model, loss, optimizer)
        inputs, targets, layers = copied(inputs), copied(targets), _dense_layers(model)
        try:
            calls = _listened_to(model, layers)
            frozen = _unfreeze(layers.values())
            outputs = _forward(model, inputs, calls, layers)
            kept_outputs = copied(outputs)  # a loss may change them in place
            output_gradients: list[Tensor] = []
            if outputs.requires_grad:
                outputs.register_hook(output_gradients.append)
            value = _loss_value(loss, outputs, targets)
            of_forward = tuple(calls)
            _backward(value, {*model.parameters(), *_parameters_of(loss)}, originals)
            if any(call.has_gradient for call in calls[len(of_forward) :]):
                raise ValueError(
                    "trace expected the forward pass to be the one that is differentiated, got a part of it computed anew by "
                    "torch.utils.checkpoint. Call checkpoint with use_reentrant=False."
                )
            trained = _update(step, frozen)
            traced_layers = tuple(call.finished(trained) for call in of_forward)
        finally:
            for layer in layers.values():
                layer.__dict__.pop("forward", None)  # which holds the layer: the copy would outlive this call
        return Trace(
            layers=traced_layers,
            inputs=inputs,
            targets=targets,
            outputs=kept_outputs,
            loss=copied(value),
            loss_name=loss_name,
            output_gradient=copied(output_gradients[0]) if output_gradients else torch.zeros_like(kept_outputs),
            optimizer=described(step),
            lr=common_lr(step),
        )


def _copies(
    model: nn.Module, loss: Callable[[Any, Any], Tensor], optimizer: Optimizer | None
) -> tuple[nn.Module, Callable[[Any, Any], Tensor], Optimizer]:
    """Copies of all three that belong together; without an optimizer, plain gradient descent on the copied model."""
    memo: dict[int, Any] = {}
    model_copy = deep_copied(model, memo)
    if isinstance(getattr(loss, "__self__", loss), nn.Module):  # a module, or a method of one
        loss = copy.deepcopy(loss, memo)
    if optimizer is None:
        return model_copy, loss, GradientDescent(model_copy.parameters(), lr=0.1, factored=False)
    return model_copy, loss, copied_optimizer(optimizer, model, memo)


def _listened_to(model: nn.Module, layers: dict[str, Dense]) -> list[TracedCall]:
    """The list to which every call of the layers will be appended."""
    calls: list[TracedCall] = []
    for name, layer in layers.items():
        listen(name, layer, calls)
    for module in model.modules():
        if isinstance(module, ByHand):
            listen_to_activation(module, calls)
    return calls


def _forward(model: nn.Module, inputs: Tensor, calls: list[TracedCall], layers: dict[str, Dense]) -> Tensor:
    outputs = model(inputs.clone())
    if not isinstance(outputs, Tensor):
        raise TypeError(
            f"trace expected the model to return a tensor, got {type(outputs).__name__}. "
            "Wrap it in a module that returns the tensor which the loss takes."
        )
    if not calls:
        raise ValueError(
            f"trace expected the model to call one of its Dense layers, got a forward pass that called none of {_listed(layers)}. "
            "Call the layers, not F.linear with their weights."
        )
    return outputs


def _loss_value(loss: Callable[[Any, Any], Tensor], outputs: Tensor, targets: Tensor) -> Tensor:
    value = checked_loss(loss(outputs, targets.clone()), "trace")
    if not value.requires_grad:
        raise ValueError(
            "trace expected a loss that depends on a parameter of the model, got one that depends on none. "
            "Do not detach the outputs."
        )
    return value


def _update(step: Optimizer, frozen: list[Tensor]) -> set[Tensor]:
    """Take the step, with what was frozen frozen again. Returns the parameters that it updates."""
    for p in frozen:
        p.grad = None
        p.requires_grad_(False)
    trained = {p for group in step.param_groups for p in group["params"] if p.grad is not None}
    step.step()
    return trained


def _backward(value: Tensor, ours: set[Tensor], originals: Container[int]) -> None:
    """Compute the gradients of our parameters. Any other tensor that the loss reads keeps the gradient that it has."""
    others = {node.variable for node in graph_nodes([value]) if hasattr(node, "variable")} - ours
    if any(id(leaf) in originals for leaf in others):
        raise ValueError(
            "trace expected a loss of the outputs and targets alone, got one that reads parameters of the model itself, "
            "where the trace has copies. Take a penalty on weights out of it, for example in favour of weight_decay."
        )
    kept = [(leaf, leaf.grad) for leaf in others]
    for leaf in others:
        leaf.grad = None
    try:
        value.backward()
    finally:
        for leaf, gradient in kept:
            leaf.grad = gradient


def _parameters_of(loss: Any) -> Iterable[nn.Parameter]:
    """The parameters of a loss that is a module, or a method of one."""
    module = getattr(loss, "__self__", loss)
    return module.parameters() if isinstance(module, nn.Module) else ()


def _dense_layers(model: nn.Module) -> dict[str, Dense]:
    """The layers by name, without the prefix that torch.compile gives the modules it wraps."""
    named = ((name, module) for name, module in model.named_modules() if isinstance(module, Dense))
    return {name.replace("_orig_mod.", "").removesuffix("_orig_mod"): module for name, module in named}


def _as_written() -> AbstractContextManager:
    """Run compiled parts as they were written: compiled code has no layers. PyTorch's compiler, which is slow to import, is asked
    only if something has imported it."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


def _unfreeze(layers: Iterable[Dense]) -> list[Tensor]:
    """Let every layer take a gradient, so that it has a delta to show. Returns the parameters that were frozen."""
    parameters = [p for layer in layers for p in layer.parameters()]
    return [p.requires_grad_(True) for p in parameters if not p.requires_grad and p.is_floating_point()]


_ORDER = "The order is trace(model, loss, inputs, targets)."


def _check_types(model: Any, loss: Any, inputs: Any, targets: Any) -> None:
    if not isinstance(model, nn.Module):
        advice = _ORDER if isinstance(model, Tensor) else "Pass the model itself."
        raise TypeError(f"trace expected `model` to be a torch.nn.Module, got {type(model).__name__}. {advice}")
    check_loss_function(loss, "trace")
    otherwise = {"inputs": "wrap the model in a module of one tensor", "targets": "let the loss find the rest"}
    for role, x in (("inputs", inputs), ("targets", targets)):
        if not isinstance(x, Tensor):
            convert = f"Convert it with torch.as_tensor({role}), or {otherwise[role]}."
            raise TypeError(
                f"trace expected `{role}` to be a torch.Tensor, got {type(x).__name__}. {_ORDER if callable(x) else convert}"
            )


def _check_layers(model: nn.Module, loss: Any) -> None:
    """Raises ValueError if there is no `Dense`, naming what `convert` would make one."""
    if _dense_layers(model):
        return
    linear = _listed([name for name, module in model.named_modules() if is_linear_like(module)])
    convert = f"Call mg.convert(model) first. Its linear layers: {linear}."
    advice = convert if linear else "It has no linear layers either."
    if isinstance(loss, nn.Module) and _dense_layers(loss):
        advice = _ORDER
    raise ValueError(f"trace expected a model with Dense layers, got {type(model).__name__} with none. {advice}")


def _listed(names: Iterable[str], most: int = 5) -> str:
    shown = [printable(repr(name)) if name else "the model itself" for name in names]
    return ", ".join(shown[:most]) + (f" and {len(shown) - most} more" if len(shown) > most else "")
