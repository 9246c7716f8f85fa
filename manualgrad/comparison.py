"""Compare every gradient by hand with built-in autograd's, and both with a float64 truth."""

from __future__ import annotations

import copy
import json
import math
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass
from html import escape
from typing import Any

import torch
from torch import Tensor, nn

from manualgrad.reference import by_autograd


@dataclass(frozen=True)
class Row:
    """One gradient, computed three ways. Errors are in units of the gradient itself; see `Comparison`."""

    name: str
    shape: tuple[int, ...]
    max_absolute_error: float  # max |by hand - autograd|
    relative_error: float  # the same over max |autograd|
    error_by_hand: float  # max |by hand - truth| over max |truth|
    error_by_autograd: float  # max |autograd - truth| over max |truth|
    ok: bool


@dataclass(frozen=True)
class Comparison:
    """Gradients by hand, by autograd and by autograd in float64 ("truth"), a row for each parameter and input.

    A row is ok if by hand and autograd differ by no more than the tolerance relative to the largest entry, or if the error
    by hand against the truth is at most twice autograd's. NaN or inf count as equal only where both have them.
    """

    rows: tuple[Row, ...]
    loss_by_hand: float
    loss_by_autograd: float

    @property
    def ok(self) -> bool:
        return all(row.ok for row in self.rows)

    @property
    def max_relative_error(self) -> float:
        return max((row.relative_error for row in self.rows), default=0.0)

    def to_dict(self) -> dict[str, Any]:
        return {"ok": self.ok, "max_relative_error": self.max_relative_error, **asdict(self)}

    def to_json(self) -> str:
        """Everything, as JSON. Infinite errors are written as null, since JSON has no infinity."""
        return json.dumps(_finite(self.to_dict()), indent=2, allow_nan=False)

    def __str__(self) -> str:
        cells = [_HEADER, *(_cells(row) for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        justify = [str.ljust, str.ljust, *[str.rjust] * (len(_HEADER) - 2)]
        lines = [
            "  ".join(to(cell, width) for to, cell, width in zip(justify, line, widths, strict=True)) for line in cells
        ]
        return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:], self._verdict()])

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{escape(cell)}</th>" for cell in _HEADER)
        body = "".join(
            "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in _cells(row)) + "</tr>" for row in self.rows
        )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table><p>{escape(self._verdict())}</p>"

    def _verdict(self) -> str:
        wrong = [row.name for row in self.rows if not row.ok]
        if wrong:
            return f"NOT ok: {', '.join(wrong)}. Largest relative difference {self.max_relative_error:.1e}."
        return f"All {len(self.rows)} rows ok. Largest relative difference {self.max_relative_error:.1e}."

    def plot(self) -> Any:
        """A matplotlib figure: both errors against the truth, a pair of bars for each row. Needs the `demo` extra."""
        from manualgrad.extras import require

        require("matplotlib", extra="demo", purpose="Comparison.plot()")
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 0.5 * len(self.rows) + 1.6), layout="constrained")
        axes = figure.add_subplot()
        y = range(len(self.rows))
        axes.barh(
            [i - 0.2 for i in y],
            [row.error_by_hand for row in self.rows],
            height=0.38,
            label="by hand",
            color="#0072B2",
        )
        axes.barh(
            [i + 0.2 for i in y],
            [row.error_by_autograd for row in self.rows],
            height=0.38,
            label="autograd",
            color="#E69F00",
        )
        axes.set_yticks(y, [row.name for row in self.rows])
        axes.invert_yaxis()
        axes.set_xscale("symlog", linthresh=1e-17)
        axes.set_xlabel("error relative to the largest entry of the float64 gradient (no unit)")
        axes.set_title("Gradients against the float64 truth")
        axes.legend()
        return figure


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

    Works on copies: the model, its gradients, buffers and training flag, and torch's and Python's random states, are left as
    they were. All three ways see the same random numbers (dropout).

    Args:
        model: any module; only gradients through `Dense`, `dense` and this package's losses are by hand.
        loss: (outputs, targets) -> a 0-dimensional tensor, the package's or any other.
        inputs: what the model is called with: a tensor, or a tuple of positional arguments.
        targets: what the loss is called with.
        tolerance: largest relative difference that counts as rounding. By default 1e-12 in float64, 1e-5 in float32,
            2e-3 in float16, 2e-2 in bfloat16.

    Returns:
        A `Comparison`: a row for every parameter that requires a gradient and for every floating point input.

    Raises:
        ValueError: the loss is not a single number.
        TypeError: `model` is not a module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"compare expected `model` to be a torch.nn.Module, got {type(model).__name__}. Pass the model itself."
        )
    arguments = inputs if isinstance(inputs, tuple) else (inputs,)
    with _RandomStates(model) as random_states:
        hand_loss, by_hand = _gradients(model, loss, arguments, targets)
        with by_autograd():
            random_states.rewind()
            autograd_loss, autograd = _gradients(model, loss, arguments, targets)
            random_states.rewind()
            _, truth = _gradients(model, loss, arguments, targets, widened=True)
    rows = tuple(
        _row(
            name,
            by_hand[name],
            autograd[name],
            truth[name],
            _TOLERANCE[gradient.dtype] if tolerance is None else tolerance,
        )
        for name, gradient in autograd.items()
    )
    return Comparison(rows, hand_loss, autograd_loss)


# What rounding may do to a gradient, relative to its largest entry.
_TOLERANCE = {
    torch.float64: 1e-12,
    torch.complex128: 1e-12,
    torch.float32: 1e-5,
    torch.complex64: 1e-5,
    torch.float16: 2e-3,
    torch.bfloat16: 2e-2,
}

_WIDE = {torch.complex64: torch.complex128, torch.complex32: torch.complex128}


def _gradients(
    model: nn.Module,
    loss: Callable[[Any, Any], Tensor],
    arguments: tuple[Any, ...],
    targets: Any,
    widened: bool = False,
) -> tuple[float, dict[str, Tensor]]:
    """The loss and {name: gradient} of the parameters and inputs, on a copy of the model; in float64 if `widened`."""
    model = copy.deepcopy(model)
    if widened:
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.data = _widened(tensor.data)
        targets = _widened(targets)
        arguments = tuple(_widened(argument) for argument in arguments)
    arguments = tuple(_leaf(argument) for argument in arguments)
    names = [f"input[{i}]" if len(arguments) > 1 else "input" for i in range(len(arguments))]
    leaves: dict[str, Tensor] = {name: p for name, p in model.named_parameters() if p.requires_grad}
    leaves |= {name: x for name, x in zip(names, arguments, strict=True) if isinstance(x, Tensor) and x.requires_grad}
    with torch.inference_mode(False), torch.enable_grad():
        value = loss(model(*arguments), targets)
        if not isinstance(value, Tensor) or value.dim() != 0:
            came = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"compare expected the loss to be a 0-dimensional tensor, got {came}. Average it, for example with .mean()."
            )
        gradients = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
    zeros = (
        torch.zeros_like(leaf) if g is None else g.detach() for leaf, g in zip(leaves.values(), gradients, strict=True)
    )
    return float(value.detach()), dict(zip(leaves, zeros, strict=True))


def _widened(x: Any) -> Any:
    if not isinstance(x, Tensor) or not (x.is_floating_point() or x.is_complex()):
        return x
    return x.to(_WIDE.get(x.dtype, torch.complex128 if x.is_complex() else torch.float64))


def _leaf(x: Any) -> Any:
    if not isinstance(x, Tensor):
        return x
    x = x.detach().clone()
    return x.requires_grad_() if x.is_floating_point() or x.is_complex() else x


def _row(name: str, by_hand: Tensor, autograd: Tensor, truth: Tensor, tolerance: float) -> Row:
    difference, scale = _largest_difference(by_hand, autograd), _largest(autograd)
    error_by_hand = _relative(_largest_difference(by_hand, truth), _largest(truth))
    error_by_autograd = _relative(_largest_difference(autograd, truth), _largest(truth))
    relative = _relative(difference, scale)
    ok = relative <= tolerance or error_by_hand <= 2 * error_by_autograd < float("inf")
    return Row(name, tuple(autograd.shape), difference, relative, error_by_hand, error_by_autograd, ok)


def _largest(x: Tensor) -> float:
    """max |x| over the finite entries; 0 if there are none."""
    x = x[torch.isfinite(x)]
    return float(x.abs().max()) if x.numel() else 0.0


def _largest_difference(x: Tensor, y: Tensor) -> float:
    """max |x - y|. Equal infinities and NaN on both sides differ by 0; infinity or NaN on one side only, by infinity."""
    x, y = _widened(x), _widened(y)
    same = (x == y) | (x.isnan() & y.isnan())
    differences = (x - y).abs()[~same].nan_to_num(nan=float("inf"))
    return float(differences.max()) if differences.numel() else 0.0


def _relative(difference: float, scale: float) -> float:
    if difference == 0:
        return 0.0
    return difference / scale if scale > 0 else float("inf")


class _RandomStates:
    """Keeps torch's random states, the model's devices included, and Python's; `rewind` goes back to the start."""

    def __init__(self, model: nn.Module) -> None:
        self.devices = {p.device for p in model.parameters() if p.device.type not in ("cpu", "meta")}

    def __enter__(self) -> _RandomStates:
        self.python = random.getstate()
        self.cpu = torch.random.get_rng_state()
        self.others = {device: torch.get_device_module(device).get_rng_state(device) for device in self.devices}
        return self

    def rewind(self) -> None:
        random.setstate(self.python)
        torch.random.set_rng_state(self.cpu)
        for device, state in self.others.items():
            torch.get_device_module(device).set_rng_state(state, device)

    def __exit__(self, *exception: object) -> None:
        self.rewind()


_HEADER = (
    "gradient",
    "shape",
    "max |by hand - autograd|",
    "relative",
    "by hand vs float64",
    "autograd vs float64",
    "ok",
)


def _cells(row: Row) -> tuple[str, ...]:
    errors = (row.max_absolute_error, row.relative_error, row.error_by_hand, row.error_by_autograd)
    return (
        row.name,
        "x".join(map(str, row.shape)) or "scalar",
        *(f"{e:.1e}" for e in errors),
        "yes" if row.ok else "NO",
    )


def _finite(x: Any) -> Any:
    """`x` with infinities and NaN replaced by None."""
    if isinstance(x, dict):
        return {key: _finite(value) for key, value in x.items()}
    if isinstance(x, list | tuple):
        return [_finite(value) for value in x]
    return None if isinstance(x, float) and not math.isfinite(x) else x
