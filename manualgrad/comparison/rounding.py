"""What rounding can do to a gradient: how far it moves when every term of every sum is off by a rounding error.

A gradient is a sum of terms: sum delta for a bias, delta^T a for a weight, delta w for an input, and delta itself is made of
such sums in all layers above. Where terms cancel, the result says nothing of their size, and two right computations may differ
by more than the result. So the backward and forward pass are run again a few times, each operation that adds up terms gets
them off by a random relative error, and the gradient's response, divided by that error, is the size of its terms: the root of
sum (delta a)^2, all errors from above included.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map


RUNS = 5

# Where terms are added up, by the name of the operation. Others only hand on relative errors; those that choose entries (max,
# sort, ==) must see the same numbers each time, or their backward pass finds none.
_ADDS_UP = re.compile(
    r"mm|mv|dot|conv|sum|mean|var|std|norm|add|sub|loss|softmax|attention|backward|linalg|solve|fft|pool|upsample|grid|cell|dist"
)


@dataclass(frozen=True)
class Rounding:
    """What rounding does to the entries of one gradient.

    `terms` is the size of what is added up in each entry, `unit` the relative error of one rounding. An entry moves by more than
    that explains, by `jump` at most, where an activation has a kink at the number at hand.
    """

    terms: Tensor
    jump: Tensor
    unit: float


def rounding(
    compute: Callable[[], Sequence[Tensor]], exact: Sequence[Tensor], unit: float, error: float
) -> list[Rounding]:
    """Measured for each tensor that `compute` returns, by relative errors of size `error` in its terms.

    `exact` is what it returns without. It must draw the same random numbers each time, and computes best in float64.
    """
    moved: list[list[Tensor]] = [[] for _ in exact]
    for run in range(RUNS):
        with OffByRounding(error, seed=run):
            found = compute()
        for each, x, y in zip(moved, found, exact, strict=True):
            each.append((x.detach() - y).abs().nan_to_num(nan=0.0, posinf=0.0))
    typical = [torch.stack(each).median(0).values for each in moved]
    largest = [torch.stack(each).amax(0) for each in moved]
    return [Rounding(x / error, (y - 4 * x).clamp(min=0), unit) for x, y in zip(typical, largest, strict=True)]


class OffByRounding(TorchDispatchMode):
    """Inside, each operation that adds up terms gets them off by a relative error of either sign."""

    def __init__(self, error: float, seed: int) -> None:
        super().__init__()
        self.error, self.seed = error, seed
        self.generators: dict[torch.device, torch.Generator] = {}

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        schema = operation._schema
        name = schema.name.partition("::")[2]
        is_view = any(x.alias_info is not None and not x.alias_info.is_write for x in schema.returns)
        if is_view or not _ADDS_UP.search(name):
            return operation(*args, **(kwargs or {}))
        written = {x.name for x in schema.arguments if x.alias_info is not None and x.alias_info.is_write}
        args = [
            x if taken.name in written else tree_map(self._off, x)
            for taken, x in zip(schema.arguments, args, strict=False)
        ]
        if name == "_log_softmax_backward_data":  # exp(args[1]) is rounded in it
            args[1] = args[1] + self._signs(args[1])
        return operation(*args, **(kwargs or {}))

    def _off(self, x: Any) -> Any:
        if not isinstance(x, Tensor) or not (x.is_floating_point() or x.is_complex()):
            return x
        return torch.addcmul(x, x, self._signs(x))

    def _signs(self, x: Tensor) -> Tensor:
        """Plus or minus the error, for each entry."""
        if x.device not in self.generators:
            self.generators[x.device] = torch.Generator(x.device).manual_seed(self.seed)
        signs = torch.randint(2, x.shape, generator=self.generators[x.device], dtype=x.dtype, device=x.device)
        return signs.mul_(2 * self.error).sub_(self.error)
