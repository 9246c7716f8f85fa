"""What a training step of a net cannot beat on a machine: the time to move its bytes, or to do its multiplications.

Every step reads each weight for z, reads it for the error of the layer below (the first layer has none below), and reads and
writes it, and what the optimizer keeps of it, in the update: 4 W - W_1 + 2 S numbers for W weights, W_1 of them in the first
layer, and S numbers of state. Each of the three products takes 2 r W operations for r rows, the backpropagated error
2 r (W - W_1). Activations are not counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch


def floor(sizes: Sequence[int], rows: int, state_bytes: int, device: str) -> float:
    """Seconds: the larger of both times, at the speeds measured here."""
    weights = [m * n for n, m in zip(sizes[:-1], sizes[1:], strict=True)]
    moved = 4 * (4 * sum(weights) - weights[0]) + 2 * state_bytes
    operations = 2 * rows * (3 * sum(weights) - weights[0])
    rate = _operations_per_second(max(rows, 256), max(sizes), device)
    return max(moved / _bytes_per_second(4 * sum(weights) + state_bytes, device), operations / rate)


def _bytes_per_second(size: int, device: str) -> float:
    """Reading, or updating in place, as many bytes as a step moves (so caches help as much); the faster of the two."""
    x = torch.ones(max(1, size // 4), device=device)
    return max(size / _least(lambda: x.sum(), device), 2 * size / _least(lambda: x.mul_(1.0), device))


def _operations_per_second(rows: int, n: int, device: str) -> float:
    """Of the matrix product a w^T for a square weight as wide as the net."""
    a, w = torch.randn(rows, n, device=device), torch.randn(n, n, device=device)
    return 2 * rows * n * n / _least(lambda: a @ w.t(), device)


def _least(operation: Callable[[], Any], device: str, repeats: int = 7) -> float:
    """Seconds of the fastest of a few, after one that does not count."""
    return max(1e-9, min([elapsed(operation, 1, device) for _ in range(repeats + 1)][1:]))


def elapsed(step: Callable[[], Any], count: int, device: str) -> float:
    """Seconds of that many steps, to the end of their work on the device."""
    if device == "cuda":
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        start.record()
        for _ in range(count):
            step()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3
    began = time.perf_counter()
    for _ in range(count):
        step()
    return time.perf_counter() - began
