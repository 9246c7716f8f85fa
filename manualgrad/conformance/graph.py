"""The hand-written backward passes in a graph: what they save and what they return."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction

from manualgrad.conformance.diagnosis import wrong_shape
from manualgrad.dry_run import graph_nodes


def handwritten(results: Sequence[Tensor]) -> Iterator[Any]:
    """The nodes that belong to an `autograd.Function`. Such a node is the `ctx` that its backward gets."""
    return (node for node in graph_nodes(results) if isinstance(node, BackwardCFunction))


class Watch:
    """Records what every hand-written backward pass of the graph returns. On leaving, the classes are as they were."""

    def __init__(self, results: Sequence[Tensor]) -> None:
        self.nodes = list(handwritten(results))
        self.returned: dict[Any, list[Tensor]] = {node: [] for node in self.nodes}  # on the meta device
        self.needed: dict[Any, list[Tensor]] = {node: [] for node in self.nodes}
        self.computes_unneeded = False
        self.classes = {node._forward_cls for node in self.nodes}

    def __enter__(self) -> "Watch":
        for node in self.nodes:
            node.register_hook(self._note_needed(node))
        self.replaced = {cls: cls.__dict__.get("backward") for cls in self.classes}
        for cls in self.classes:
            cls.backward = staticmethod(self._noting(cls.backward))
        return self

    def __exit__(self, *exception: object) -> None:
        for cls, backward in self.replaced.items():
            if backward is None:
                del cls.backward
            else:
                cls.backward = backward

    def _noting(self, backward: Any) -> Any:
        def noting(ctx: Any, *upstream: Any) -> Any:
            found = backward(ctx, *upstream)
            each = found if isinstance(found, tuple) else (found,)
            self.returned.get(ctx, []).extend(_shell(x) for x in each if isinstance(x, Tensor))
            return found

        return noting

    def _note_needed(self, node: Any) -> Any:
        def note(grad_inputs: Sequence[Tensor | None], grad_outputs: Any) -> None:
            for gradient, (following, _) in zip(grad_inputs, node.next_functions, strict=False):
                if gradient is not None:
                    self.needed[node].append(_shell(gradient))  # autograd has summed and cast it
                    self.computes_unneeded |= following is None

        return note

    def mended(self) -> str | None:
        """A sentence about a gradient that autograd has silently corrected: summed to a smaller shape, or cast.

        Other callers of backward do not sum, and the digits that a narrower dtype has lost do not come back.
        """
        for node in self.nodes:
            for came, needed in zip(self.returned[node], self.needed[node], strict=False):
                if came.shape != needed.shape:
                    return f"a gradient {wrong_shape(came.shape, needed.shape)}"
                both_real = came.is_floating_point() and needed.is_floating_point()
                if both_real and torch.promote_types(came.dtype, needed.dtype) != came.dtype:
                    return f"a gradient is {came.dtype}, expected {needed.dtype}: autograd casts it, but its digits are lost"
        return None


def _shell(x: Tensor) -> Tensor:
    """Shape and dtype without the numbers, which would cost memory."""
    return torch.empty(x.shape, dtype=x.dtype, device="meta")


def refused_shape(error: RuntimeError) -> str | None:
    """A sentence for autograd's error about a gradient of the wrong shape; None for any other error."""
    found = re.search(
        r"invalid gradient at index \d+ - got \[(.*?)\] but expected shape compatible with \[(.*?)\]", str(error)
    )
    if found is None:
        return None
    came, needed = ([int(size) for size in group.split(",") if size.strip()] for group in found.groups())
    return f"a gradient {wrong_shape(came, needed)}"
