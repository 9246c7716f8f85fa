"""Record a computation as a CUDA graph: what `manualgrad.train_step.recording.recorder` does for the CPU, done by the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from manualgrad.train_step.recording.traced_number import Options


class CapturedReplay:
    """`replay(*tensors)` copies the tensors into `inputs` and launches the graphs."""

    def __init__(self, inputs: Sequence[Tensor], graphs: Sequence[Callable[[], None]]) -> None:
        self._inputs, self._graphs = inputs, graphs

    def __call__(self, *tensors: Tensor) -> None:
        for x, tensor in zip(self._inputs, tensors, strict=True):
            x.copy_(tensor)
        for graph in self._graphs:
            graph()

    def set_numbers(self, options: Options) -> None:
        """A graph's numbers are fixed; a learning rate that changes is read from the device."""


def capture(function: Callable[..., Any], *arguments: Any, is_pure: bool = False) -> tuple[Any, Callable[[], None]]:
    """function(*arguments), without gradients, and a function that runs its kernels again on the same memory.

    `is_pure` says that it changes nothing but its results: it may then be run beforehand.
    """
    with torch.no_grad():
        if is_pure:
            _warm_up(function, *arguments)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = function(*arguments)
        graph.replay()  # capturing runs nothing
        return result, graph.replay


def _warm_up(function: Callable[..., Any], *arguments: Any) -> None:
    """Let libraries allocate what they allocate once, which a capture must not see."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        function(*arguments)
    torch.cuda.current_stream().wait_stream(stream)
