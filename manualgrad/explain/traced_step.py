"""Every number of one training step, layer by layer: the data of a trace."""

import json
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from manualgrad.explain.printable import printable


@dataclass(frozen=True, repr=False)
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
    trained: bool = True  # False if the optimizer left the weight alone: frozen, not its own, or without a gradient

    def __repr__(self) -> str:
        again = f", call {self.call + 1}" if self.call else ""
        (m, n), examples = self.weight_before.shape, _counted(as_rows(self.a).size(0), "example")
        return f"TracedLayer({printable(repr(self.name))}{again}: {n} -> {m}, {printable(self.activation)}, {examples})"


@dataclass(frozen=True, repr=False)
class TracedStep:
    """One training step as it would have been. The loss C is the mean over the batch if the loss function says so; so are all
    its gradients."""

    layers: tuple[TracedLayer, ...]  # in the order in which they were called
    inputs: Tensor
    targets: Tensor
    outputs: Tensor  # of the whole model
    loss: Tensor  # ()
    loss_name: str
    output_gradient: Tensor  # dC/d outputs
    optimizer: str  # such as "GradientDescent(lr=0.5)"
    lr: float | None  # None if its param groups differ, or it has none

    def __repr__(self) -> str:
        r = as_rows(self.layers[-1].a).size(0)
        size = f"{_counted(len(self.layers), 'layer')}, {_counted(r, 'example')}"
        return (
            f"{type(self).__name__}({size}, {printable(self.loss_name)} C = {self.loss.item():.4g}, {self.optimizer})"
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain Python values, tensors as nested lists. The keys are the names of the fields."""
        return {**_plain_fields(self), "layers": [_plain_fields(layer) for layer in self.layers]}

    def to_json(self) -> str:
        """Everything, as JSON. NaN and infinities are written as null, since JSON has neither."""
        with_nan = json.dumps(self.to_dict())
        return json.dumps(json.loads(with_nan, parse_constant=lambda name: None), allow_nan=False)


def as_rows(x: Tensor) -> Tensor:
    """(..., n) -> (r, n): all leading axes are the batch."""
    return x.reshape(-1, x.size(-1)) if x.dim() else x.reshape(1, 1)


def _plain_fields(x: Any) -> dict[str, Any]:
    return {field.name: _plain(getattr(x, field.name)) for field in fields(x)}


def _plain(x: Any) -> Any:
    """A tensor as nested lists; complex numbers as pairs."""
    if isinstance(x, Tensor):
        return (torch.view_as_real(x.resolve_conj()) if x.is_complex() else x).tolist()
    return x


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" + ("" if count == 1 else "s")
