"""How time and memory of a training step are measured."""

from __future__ import annotations

import ctypes
import gc
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from manualgrad.bench.floor import floor
from manualgrad.bench.rivals import make, plain_model


BLOCK = 0.02  # seconds that a block of steps takes at least: a shorter one is a matter of the clock and of luck
WARM_UP = 3  # steps of each way, not timed
STATUS = Path("/proc/self/status")


def batch_of(rows: int, sizes: list[int], device: str) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows)
    inputs = torch.randn(rows, sizes[0], generator=generator).to(device)
    return inputs, torch.randn(rows, sizes[-1], generator=generator).to(device)


def step_times(
    names: list[str], sizes: list[int], activation: str, rows: int, clip: bool, seconds: float, device: str
) -> dict[str, Any]:
    """Seconds of a step of each way (`interleaved`), why a way was left out, `weights_apart` of each, and the step's `floor`.

    `weights_apart` is the largest difference of any weight from the first way's after as many steps, over the largest change
    of any weight since the start: near 0 where both have computed the same, near 1 where one has not trained.
    """
    inputs, targets = batch_of(rows, sizes, device)
    models, steps, skipped = {}, {}, {}
    for name in names:
        try:
            model, step = make(name, sizes, activation, device, clip)
            step(inputs, targets)
        except Exception as error:  # torch.compile without a compiler; of the others we want to know
            if name != "torch.compile":
                raise
            skipped[name] = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
            continue
        models[name], steps[name] = model, partial(step, inputs, targets)
    times = interleaved(steps, device, seconds)
    start, first = plain_model(sizes, activation, device), next(iter(models.values()))
    moved = _distance(first, start)
    apart = {name: _distance(model, first) / moved for name, model in models.items()}
    return {"seconds": times, "skipped": skipped, "weights_apart": apart, "floor": floor(sizes, rows, device)}


def _distance(model: torch.nn.Module, other: torch.nn.Module) -> float:
    pairs = zip(model.parameters(), other.parameters(), strict=True)
    return max(float((p.detach() - q.detach()).abs().max()) for p, q in pairs)


def interleaved(
    steps: Mapping[str, Callable[[], Any]], device: str, seconds: float, rounds: int = 5
) -> dict[str, dict[str, float]]:
    """Seconds of a step of each, median and quartiles, in turns A B C B C A ..., so that a slow moment hits all alike.

    Each turn is a block of steps after one that is not timed, which brings weights that fit there back into the caches, as in
    a training loop. All take the same number of steps. `seconds` is for all of it; there are at least so many rounds.
    """
    for step in steps.values():
        for _ in range(WARM_UP):
            step()
    size = max(1, round(BLOCK / max(1e-6, min(_seconds(step, 1, device) for step in steps.values()))))
    blocks: dict[str, list[float]] = {name: [] for name in steps}
    names, began = list(steps), time.perf_counter()
    while len(blocks[names[0]]) < rounds or time.perf_counter() - began < seconds:
        for name in names:
            steps[name]()
            blocks[name].append(_seconds(steps[name], size, device) / size)
        names.append(names.pop(0))
    return {name: _quartiles(values) for name, values in blocks.items()}


def _quartiles(values: list[float]) -> dict[str, float]:
    lower, median, upper = statistics.quantiles(values, n=4)
    return {"median": median, "lower": lower, "upper": upper, "blocks": len(values)}


def _seconds(step: Callable[[], Any], count: int, device: str) -> float:
    """That many steps, to the end of their work on the device."""
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


def peak_bytes(name: str, sizes: list[int], activation: str, rows: int, device: str, steps: int = 3) -> int | None:
    """Peak memory of a few steps above what the model and the batch hold. Call it in a process of its own.

    On CUDA, what the caching allocator has handed out. On the CPU the growth of the resident set, which Linux alone tells
    (elsewhere None). Small steps have brought in the libraries' own buffers before; for torch.compile, the real ones have.
    """
    _, small = make(name, [8, 8], activation, device, False)
    small(*batch_of(2, [8, 8], device))
    model, step = make(name, sizes, activation, device, False)
    inputs, targets = batch_of(rows, sizes, device)
    if name == "torch.compile":  # the compiler's own memory is not the step's
        step(inputs, targets)
        model.zero_grad()
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
    elif STATUS.exists():
        _return_free_pages()
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        held = _status("VmRSS")
    else:
        return None
    for _ in range(steps):
        step(inputs, targets)
    return (torch.cuda.max_memory_allocated() if device == "cuda" else _status("VmHWM")) - held


def _status(key: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(key + ":"))
    return 1024 * int(line.split()[1])


def _return_free_pages() -> None:
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)
