"""A `Dense` that learns its number of features in from the first batch."""

import torch
from torch import Tensor, nn

from manualgrad.activation.built_in import Activation, activation_named
from manualgrad.layers.dense import Dense
from manualgrad.layers.dense_checks import check_definition


class LazyDense(nn.LazyLinear, Dense):
    """A `Dense` without `in_features`: the first input (..., n) decides it, and from then on this is a `Dense`.

    As with `nn.LazyLinear`, run one batch through the model before making the optimizer's copy of it or counting parameters.

    Args:
        out_features: m, the size of the output's last axis.
        bias, activation, device, dtype: as for `Dense`.

    Raises:
        ValueError: an unknown activation, a negative size; a first input without any axis.
        TypeError: a size that is no integer, a bias that is no bool; a first input that is not a tensor.
    """

    cls_to_become = Dense  # type: ignore[assignment]

    def __init__(
        self,
        out_features: int,
        bias: bool = True,
        activation: str | Activation | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_definition(0, out_features, bias, type(self).__name__)
        sigma = activation_named(activation)
        super().__init__(out_features, bias, device, dtype)
        self.activation = sigma

    def initialize_parameters(self, input: Tensor) -> None:
        """Called before the first forward pass."""
        if not isinstance(input, Tensor):
            raise TypeError(
                f"LazyDense expected a torch.Tensor as its first input, got {type(input).__name__}. "
                "Convert it with torch.as_tensor(input)."
            )
        if input.dim() == 0:
            raise ValueError(
                "LazyDense expected a first input of shape (..., features in), got a tensor without any axis. "
                "Give it at least one."
            )
        super().initialize_parameters(input)
