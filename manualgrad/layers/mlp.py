"""A multilayer perceptron: a stack of `Dense` layers."""

from collections import OrderedDict
from collections.abc import Sequence
from operator import index as as_integer
from typing import Any

import torch
from torch import nn

from manualgrad.activation.built_in import Activation, activation_named
from manualgrad.layers.dense import Dense


class MLP(nn.Sequential):
    """Dense layers from their sizes: `MLP([784, 30, 10], "sigmoid")` has 784 inputs, 30 hidden neurons, 10 outputs.

    Args:
        sizes: features in, of each hidden layer, and out; at least two positive integers.
        activation: of the hidden layers.
        output_activation: of the last layer; None leaves its z, what the cross-entropy losses take.
        bias, device, dtype: of every layer, as for `Dense`.

    Shapes: input (..., sizes[0]) -> output (..., sizes[-1]).

    Raises:
        ValueError: fewer than two sizes, a size that is not positive, an unknown activation.
        TypeError: a size that is not an integer.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        activation: str | Activation | None = "relu",
        output_activation: str | Activation | None = None,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        sizes = _checked(sizes)
        # What is wrong fails before any layer is made.
        activations = [activation_named(activation)] * (len(sizes) - 2) + [activation_named(output_activation)]
        of_layers = zip(sizes[:-1], sizes[1:], activations, strict=True)
        super().__init__(*(Dense(n, m, bias, sigma, device=device, dtype=dtype) for n, m, sigma in of_layers))
        self.sizes = sizes

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):  # nn.Sequential would build an MLP from layers; part of one is a plain stack
            return nn.Sequential(OrderedDict(list(self._modules.items())[index]))
        return super().__getitem__(index)


def _checked(sizes: Sequence[int]) -> tuple[int, ...]:
    example = "Pass for example sizes=[784, 30, 10]."
    if isinstance(sizes, str | bytes) or not hasattr(sizes, "__iter__"):
        raise TypeError(f"MLP expected `sizes` to be a sequence of integers, got {sizes!r}. {example}")
    sizes = tuple(sizes)
    if not all(hasattr(size, "__index__") and not isinstance(size, bool) for size in sizes):
        raise TypeError(f"MLP expected `sizes` to be a sequence of integers, got {list(sizes)}. {example}")
    sizes = tuple(as_integer(size) for size in sizes)  # NumPy's integers too
    if len(sizes) < 2:
        raise ValueError(
            f"MLP expected `sizes` to have at least two entries, features in and features out, got {list(sizes)}. {example}"
        )
    if min(sizes) <= 0:
        raise ValueError(f"MLP expected every entry of `sizes` to be positive, got {list(sizes)}. {example}")
    return sizes
