"""How time and memory of a training step are measured, and the floor under the time."""

from __future__ import annotations

import gc
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from manualgrad.bench.rivals import Step, make


def batch_of(rows: int, sizes: list[int], device: str) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows)
    inputs = torch.randn(rows, sizes[0], generator=generator).to(device)
    return inputs, torch.randn(rows, sizes[-1], generator=generator).to(device)


def seconds(step: Step, inputs: Tensor, targets: Tensor) -> float:
    """One step, to the end of its work on the device."""
    if inputs.device.type == "cuda":
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        step(inputs, targets)
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3
    began = time.perf_counter()
    step(inputs, targets)
    return time.perf_counter() - began


def interleaved(
    steps: dict[str, Step], inputs: Tensor, targets: Tensor, repeats: int, warm_up: int = 3
) -> dict[str, float]:
    """Median seconds of each, in turns A B C A B C ..., so that a slow moment of the machine hits all alike."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(warm_up + repeats):
        for name, step in steps.items():
            taken = seconds(step, inputs, targets)
            if turn >= warm_up:
                times[name].append(taken)
    return {name: statistics.median(values) for name, values in times.items()}


def step_times(
    names: list[str], sizes: list[int], activation: str, rows: int, max_norm: float | None, repeats: int, device: str
) -> dict[str, Any]:
    """{name: median seconds}, and the largest difference of any weight from the first way's after the same steps."""
    inputs, targets = batch_of(rows, sizes, device)
    made = {name: make(name, sizes, activation, device, max_norm) for name in names}
    times = interleaved({name: step for name, (_, step) in made.items()}, inputs, targets, repeats)
    first, *others = [[p.detach() for p in model.parameters()] for model, _ in made.values()]
    apart = max(
        (float((p - q).abs().max()) for other in others for p, q in zip(first, other, strict=True)), default=0.0
    )
    return {"seconds": times, "weights_apart": apart}


def peak_bytes(name: str, sizes: list[int], activation: str, rows: int, device: str, steps: int = 3) -> int:
    """Peak memory of a few steps above what the model and the batch hold. Call it in a process of its own.

    On the CPU this is the growth of the resident set (Linux), after small steps have brought in the libraries' own buffers.
    """
    _, small = make(name, [8, 8], activation, device, None)
    small(*batch_of(2, [8, 8], device))
    _, step = make(name, sizes, activation, device, None)
    inputs, targets = batch_of(rows, sizes, device)
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        held = _status("VmRSS")
    for _ in range(steps):
        step(inputs, targets)
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else _status("VmHWM")
    return peak - held


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"Expected {key} in /proc/self/status, found none. Memory on the CPU is measured on Linux only.")


def floor_seconds(sizes: list[int], rows: int, device: str) -> float:
    """What a step cannot beat here: the larger of the time to move its bytes and the time to do its operations.

    Bytes: the forward pass and the backpropagated error read each weight, the update reads and writes it (the first layer
    backpropagates no error). Operations: 2 r m n for each of the three products, at the rate of a plain product of that size.
    """
    weights = list(zip(sizes[1:], sizes[:-1], strict=True))
    passes = sum(m * n * (3 if i == 0 else 4) for i, (m, n) in enumerate(weights)) * 4
    operations = sum(2 * rows * m * n * (2 if i == 0 else 3) for i, (m, n) in enumerate(weights))
    m, n = max(weights, key=lambda shape: shape[0] * shape[1])
    big = torch.randn(m, n, device=device)
    factor = torch.randn(max(rows, 512), n, device=device)
    read = interleaved({"read": lambda *_: big.sum()}, big, big, repeats=7)["read"]
    product = interleaved({"mm": lambda *_: torch.mm(factor, big.t())}, big, big, repeats=5)["mm"]
    bandwidth = big.numel() * 4 / read
    rate = 2 * factor.size(0) * m * n / product
    return max(passes / bandwidth, operations / rate)
