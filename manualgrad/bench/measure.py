"""How time and memory of a training step are measured."""

from __future__ import annotations

import ctypes
import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from manualgrad.bench.floor import elapsed, floor
from manualgrad.bench.problem import Problem
from manualgrad.bench.rivals import make


BLOCK = 0.02  # seconds that a block of steps takes at least: a shorter one is a matter of the clock and of luck
CHECKED = 5  # steps before the weights are compared and before anything is timed
STATUS = Path("/proc/self/status")


def step_times(names: list[str], problem: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Seconds of a step of each way (`interleaved`), why a way was left out, `weights_apart` of each, and the step's `floor`.

    `weights_apart` is how far a way's weights are after CHECKED steps from those that it should reach, over how far these
    have moved (2-norms): rounding alone makes about 1e-4.

    Raises:
        RuntimeError: a way has reached other weights, so that it has not computed the same.
    """
    what = Problem(**problem)
    ways, skipped = {}, {}
    for name in names:
        try:
            way = make(name, what)
            start = [w.clone() for w in way.weights()]
            for each in [way, *([way.expected] if way.expected else [])]:
                for _ in range(CHECKED):
                    each.step()
        except Exception as error:  # torch.compile without a compiler, or no JAX; of the others we want to know
            if name != "torch.compile" and not isinstance(error, ImportError):
                raise
            skipped[name] = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
            continue
        ways[name] = way, start
    first, _ = next(iter(ways.values()))
    apart = {
        name: _apart(way.weights(), (way.expected or first).weights(), start) for name, (way, start) in ways.items()
    }
    if wrong := [name for name, distance in apart.items() if not distance < 0.01]:
        raise RuntimeError(
            f"The benchmark expected the same weights from every rival, got others from {', '.join(wrong)} on {what}. "
            "Its figures would mean nothing; please report this."
        )
    times = interleaved({name: way.step for name, (way, _) in ways.items()}, what.device, seconds)
    least = floor(what.sizes, what.rows, what.device)
    return {"seconds": times, "skipped": skipped, "weights_apart": apart, "floor": least}


def _apart(weights: list[Tensor], expected: list[Tensor], start: list[Tensor]) -> float:
    def distance(x: list[Tensor], y: list[Tensor]) -> float:
        return math.hypot(*(float(torch.dist(p.cpu(), q.cpu())) for p, q in zip(x, y, strict=True)))

    return distance(weights, expected) / distance(expected, start)


def interleaved(
    steps: Mapping[str, Callable[[], Any]], device: str, seconds: float, rounds: int = 5
) -> dict[str, dict[str, float]]:
    """Seconds of a step of each, median and quartiles, in turns A B C B C A ..., so that a slow moment hits all alike.

    Each turn is a block of steps after one that is not timed, which brings weights that fit there back into the caches, as in
    a training loop. All take the same number of steps. `seconds` is for all of it; there are at least so many rounds.
    """
    size = max(1, round(BLOCK / max(1e-6, min(elapsed(step, 1, device) for step in steps.values()))))
    blocks: dict[str, list[float]] = {name: [] for name in steps}
    names, began = list(steps), time.perf_counter()
    gc.collect()
    gc.disable()
    try:
        while len(blocks[names[0]]) < rounds or time.perf_counter() - began < seconds:
            for name in names:
                steps[name]()
                blocks[name].append(elapsed(steps[name], size, device) / size)
            names.append(names.pop(0))
    finally:
        gc.enable()
    return {name: _quartiles(values) for name, values in blocks.items()}


def _quartiles(values: list[float]) -> dict[str, float]:
    lower, median, upper = statistics.quantiles(values, n=4)
    return {"median": median, "lower": lower, "upper": upper, "blocks": len(values)}


def peak_bytes(name: str, problem: dict[str, Any], steps: int = 3) -> int | None:
    """Peak memory of a few steps above what the model and the batch hold. Call it in a process of its own.

    On CUDA, what the caching allocator has handed out. On the CPU the growth of the resident set, which Linux alone tells
    (elsewhere None). Small steps have brought in the libraries' own buffers before; for torch.compile, the real ones have.
    """
    what = Problem(**problem)
    make(name, what._replace(sizes=[8, 8], rows=2)).step()
    way, device = make(name, what), what.device
    if name == "torch.compile" and way.model is not None:  # the compiler's own memory is not the step's
        way.step()
        way.model.zero_grad()
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
        way.step()
    return (torch.cuda.max_memory_allocated() if device == "cuda" else _status("VmHWM")) - held


def _status(key: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(key + ":"))
    return 1024 * int(line.split()[1])


def _return_free_pages() -> None:
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)
