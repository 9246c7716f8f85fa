"""The result of a trace: every number of one training step, layer by layer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, fields
from os import PathLike
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class TracedLayer:
    """One call of a `Dense` layer. All tensors are detached copies; n features in, m out, ... are the batch's axes.

    delta = dC/da * sigma'(z), grad_weight = delta^T a_below and grad_bias = delta, both summed over the batch's axes.
    """

    name: str  # the module's path in the model; "" if the model itself is the layer
    call: int  # 0 for the first call of this layer in the forward pass, 1 for the second, ...
    activation: str  # the name of sigma
    inputs: Tensor  # (..., n): a of the layer below, as the layer received it
    z: Tensor  # (..., m)
    a: Tensor  # (..., m)
    derivative: Tensor  # (..., m): sigma'(z)
    cost_gradient: Tensor  # (..., m): dC/da
    delta: Tensor  # (..., m)
    grad_weight: Tensor  # (m, n): of this call alone, also where the layer is called twice or frozen
    grad_bias: Tensor | None  # (m,)
    weight_before: Tensor  # (m, n)
    weight_after: Tensor  # (m, n)
    bias_before: Tensor | None  # (m,)
    bias_after: Tensor | None  # (m,)
    trained: bool = (
        True  # False if the optimizer left the weight alone: frozen, not its own, or out of the loss's reach
    )


@dataclass(frozen=True)
class Trace:
    """One training step, as it would have been: what `mg.trace` returns.

    The loss C is the mean over the batch if the loss function says so; so are all its gradients. `print` shows the four
    steps, `plot` draws them, `to_html` writes them as a page.
    """

    layers: tuple[TracedLayer, ...]  # in the order in which they were called
    inputs: Tensor
    targets: Tensor
    outputs: Tensor  # of the whole model
    loss: Tensor  # ()
    loss_name: str
    output_gradient: Tensor  # dC/d outputs
    optimizer: str  # such as "GradientDescent(lr=0.5)"
    lr: float | None  # None if its param groups differ, or it has none

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain Python values, tensors as nested lists. The keys are the names of the fields."""
        return {
            **{name: _plain(value) for name, value in _fields(self).items() if name != "layers"},
            "layers": [{name: _plain(value) for name, value in _fields(layer).items()} for layer in self.layers],
        }

    def to_json(self) -> str:
        """Everything, as JSON. NaN and infinities are written as null, since JSON has neither."""
        with_nan = json.dumps(self.to_dict())
        return json.dumps(json.loads(with_nan, parse_constant=lambda _: None), allow_nan=False)

    def __str__(self) -> str:
        from manualgrad.explain.terminal import plain

        return plain(self)

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        from manualgrad.explain.terminal import coloured

        return coloured(self, width=options.max_width)

    def plot(self) -> Any:
        """A matplotlib figure: norms by layer, updates against weights, and heat maps of delta, w and dC/dw.

        Raises:
            MissingExtraError: the `demo` extra is not installed.
            TypeError: complex numbers, which have no place on its axes.
        """
        from manualgrad.extras import require

        require("matplotlib", extra="demo", purpose="Trace.plot()")
        from manualgrad.explain.plots import plot

        return plot(self)

    def to_html(self, path: str | PathLike[str], *, title: str | None = None) -> None:
        """Write one self-contained page that shows the step.

        Raises:
            MissingExtraError: the `demo` extra is not installed.
            FileNotFoundError: there is no folder for `path`.
        """
        from manualgrad.explain.page.write_page import write_page

        write_page([self], path, title=title)


def _fields(x: Any) -> dict[str, Any]:
    return {field.name: getattr(x, field.name) for field in fields(x)}


def _plain(x: Any) -> Any:
    """A tensor as nested lists; complex numbers as pairs."""
    if isinstance(x, Tensor):
        return (torch.view_as_real(x.resolve_conj()) if x.is_complex() else x).tolist()
    return x
