"""A dense layer a = sigma(w a_below + b) whose backward pass is written by hand, in `dense_function`.

`dense` checks its arguments and applies the Function; `Dense` is the module, an `nn.Linear` with an activation.
Shapes: n features in, m out, weight (m, n), bias (m,), input (..., n).
"""

from typing import Any

import torch
from torch import Tensor, nn

from manualgrad.activation.built_in import Activation, activation_named, identity
from manualgrad.autograd.apply import call, is_left_to_autograd
from manualgrad.autograd.autocast import is_autocasting, is_castable, without_autocast
from manualgrad.autograd.switch import is_by_autograd
from manualgrad.autograd.torch_state import is_any_autocast_enabled
from manualgrad.layers.dense_checks import (
    check_arguments,
    check_definition,
    check_devices,
    check_linear,
    check_tensors,
    fit,
)
from manualgrad.layers.dense_function import DenseFunction, DenseFunctionWithTangent
from manualgrad.layers.torchscript import Scriptable


def dense(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | Activation | None = None
) -> Tensor:
    """sigma(input @ weight.T + bias), with a backward pass written by hand (`manualgrad.equations`).

    Args:
        input: (..., n), any number of leading axes, also none and also empty ones.
        weight: (m, n).
        bias: (m,) or None.
        activation: a name from `mg.activations`, an `Activation`, or None for the identity.

    Returns:
        (..., m), in the dtype of `input`: floating point or complex. Under `torch.autocast`, in autocast's dtype.
        Gradients are sums over the leading axes, as autograd's are.

    Raises:
        ValueError: shapes or devices do not fit, or the activation is unknown.
        TypeError: input, weight and bias are not floating point or complex tensors of one dtype.
    """
    if not isinstance(activation, Activation):
        activation = activation_named(activation)
    if is_by_autograd() or is_left_to_autograd(input, weight, bias):
        z = nn.functional.linear(input, weight, bias)
        with without_autocast(z):  # which would compute some activations in float32
            return activation.value(z)
    if fit(input, weight, bias) and not (is_any_autocast_enabled() and is_autocasting(input)):
        return _apply(input, weight, bias, activation)  # the usual case, quickly
    check_tensors(input, weight, bias)
    if is_autocasting(input) and is_castable(input) and is_castable(weight):
        # As autocast does for a linear layer. The parameters are cast inside, so that they stay leaves.
        input = input.to(torch.get_autocast_dtype(input.device.type))
        bias_dtype = input.dtype if bias is None or is_castable(bias) else bias.dtype
        check_arguments(input, weight, bias, input.dtype, bias_dtype)
        with without_autocast(input):
            return _apply(input, weight, bias, activation)
    check_arguments(input, weight, bias, weight.dtype, weight.dtype if bias is None else bias.dtype)
    return _apply(input, weight, bias, activation)


torch.fx.wrap("dense")  # symbolic tracing records the call as it is: a Proxy has no shape to check


def _apply(input: Tensor, weight: Tensor, bias: Tensor | None, activation: Activation) -> Tensor:
    try:
        if not torch.is_grad_enabled():  # nothing to differentiate: a plain linear layer, for inference and export
            output = DenseFunction.forward(input, weight, bias, activation)
        else:
            output = call(DenseFunction, DenseFunctionWithTangent, input, weight, bias, activation)
    except (
        RuntimeError
    ):  # PyTorch looks at the devices anyway: looking first would cost every call what only this one needs
        check_devices(input, weight, bias)
        raise
    return output if isinstance(output, Tensor) else output[0]


class Dense(Scriptable, nn.Linear):
    """An `nn.Linear` with an activation, differentiated by hand: a = sigma(w a_below + b).

    Same parameters, initialisation and state dict keys as `nn.Linear`; `isinstance(layer, nn.Linear)` holds.

    Args:
        in_features: n, the size of the input's last axis.
        out_features: m, the size of the output's.
        bias: whether there is a b.
        activation: a name from `mg.activations`, an `Activation`, or None for the identity.
        device, dtype: of the parameters.

    Shapes: input (..., n), weight (m, n), bias (m,) -> output (..., m). Raises what `dense` raises, and TypeError or ValueError
    for sizes that are no integers or negative, and a bias that is no bool.
    """

    path = None  # where in its model `convert` found the layer, a str; errors name it. TorchScript cannot read `str | None`

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        activation: str | Activation | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_definition(in_features, out_features, bias, type(self).__name__)
        sigma = activation_named(activation)  # what is wrong fails before anything is allocated
        super().__init__(in_features, out_features, bias=bias, device=device, dtype=dtype)
        self.activation = sigma

    @classmethod
    def from_linear(cls, linear: nn.Linear, activation: str | Activation | None = None) -> "Dense":
        """A `Dense` that shares the Parameters of `linear` (the same objects), its training flag and nothing else.

        Raises:
            TypeError: `linear` is not an `nn.Linear`.
            ValueError: it is a lazy one that has seen no batch.
        """
        check_linear(linear)
        layer = cls(linear.in_features, linear.out_features, linear.bias is not None, activation, device="meta")
        layer.weight, layer.bias = linear.weight, linear.bias
        return layer.train(linear.training)

    def forward(self, input: Tensor) -> Tensor:
        if torch.jit.is_scripting():
            return self.sigma_in_script(nn.functional.linear(input, self.weight, self.bias))  # type: ignore[operator]
        return self._by_hand(input)

    @torch.jit.unused
    def _sigma(self, z: Tensor) -> Tensor:
        return self.activation.value(z)

    @torch.jit.unused
    def _by_hand(self, input: Tensor) -> Tensor:
        # `self.weight` is found only after a search in vain, which takes a tenth of a small layer's time. A weight that is
        # computed (a parametrization, weight_norm) is no parameter; it is found as an attribute.
        held: dict[str, Any] = self._parameters
        weight = held["weight"] if "weight" in held else self.weight
        bias = held["bias"] if "bias" in held else self.bias
        try:
            return dense(input, weight, bias, self.activation)
        except (TypeError, ValueError) as error:
            if not self.path:
                raise
            raise type(error)(f"Layer {self.path!r}: {error}") from error

    def extra_repr(self) -> str:
        plain = super().extra_repr()
        return plain if self.activation is identity else f"{plain}, activation={self.activation.name!r}"
