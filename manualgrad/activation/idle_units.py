"""Units that learn nothing: where sigma'(z) is so small that next to nothing of an error gets through."""

import torch
from torch import Tensor

from manualgrad.activation.activation import Activation


SATURATED_BELOW = 0.01


def is_rectifying(activation: Activation) -> bool:
    """Whether sigma' is exactly 0 left of 0, as relu's is: such a unit can be dead, a sigmoid can only be saturated."""
    z = torch.tensor([-1.0])
    return bool(activation.derivative(activation.value(z) if activation.from_output else z) == 0)


def saturated_entries(derivative: Tensor, below: float = SATURATED_BELOW) -> Tensor:
    """Where |sigma'(z)| is below the limit; of a sigmoid or tanh, which have no dead units."""
    return derivative.abs() < below


def dead_units(derivative: Tensor) -> Tensor:
    """sigma'(z) (..., m) -> (m,): where it is 0 for the whole batch; of what is rectifying."""
    is_zero = derivative == 0
    return is_zero.flatten(0, -2).all(0) if is_zero.dim() > 1 else is_zero
