"""How time and memory of a training step are measured. Each function is called in a process of its own."""

from __future__ import annotations

import ctypes
import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from manualgrad.bench.case import Case, CaseError, said
from manualgrad.bench.floor import elapsed, floor
from manualgrad.bench.layers import layers_of
from manualgrad.bench.ways import WAYS, Way


BLOCK = 0.02  # seconds that a block of steps takes at least: a shorter one is a matter of the clock and of luck
CHECKED = 5  # steps before the weights are compared and before anything is timed
STATUS = Path("/proc/self/status")


def step_times(case: Sequence[Any], names: Sequence[str], seconds: float) -> dict[str, Any]:
    """`times`, seconds of a step of each way (`interleaved`); `notes`, why a way was left out; `weights_apart` of each; of a net
    the `floor`; and of the factored way its `layers`.

    Raises:
        CaseError, RuntimeError: as `checked_ways`.
    """
    what = Case(*case)
    ways, apart, notes = checked_ways(what, names)
    factored = ways["factored"].task if "factored" in ways else None
    result: dict[str, Any] = {
        "times": interleaved({name: way.step for name, way in ways.items()}, what.device, seconds),
        "weights_apart": apart,
        "notes": notes,
        "layers": [] if factored is None else layers_of(factored),
    }
    if what.net:
        result["floor"] = floor(what.net.sizes, what.batch, _state_bytes(ways[names[0]]), what.device)
    return result


def checked_ways(case: Case, names: Sequence[str]) -> tuple[dict[str, Way], dict[str, float], dict[str, str]]:
    """The ways that apply, after CHECKED steps, and how far their weights are apart; and why the others do not apply.

    Apart: how far a way's weights are from those that it should reach, those of the first way, over how far these have moved
    (2-norms). Rounding alone makes about 1e-4 in float32.

    Raises:
        CaseError: the case cannot be trained in plain PyTorch.
        RuntimeError: a way has reached other weights, so that it has not computed the same.
    """
    case.check()
    ways: dict[str, Way] = {}
    apart: dict[str, float] = {}
    notes: dict[str, str] = {}
    for name in names:
        try:
            way = WAYS[name](case)
            start = [w.clone() for w in way.weights()]
            for each in filter(None, [way, way.expected]):
                torch.manual_seed(1)  # for dropout
                for _ in range(CHECKED):
                    each.step()
        except Exception as error:  # no such package, no stack of layers: the row says so
            notes[name] = _first_sentence(error)
            if name == names[0]:
                raise CaseError(f"Expected {name!r} to train {case.model}, got: {notes[name]}") from error
            continue
        ways[name] = way
        apart[name] = _apart(way.weights(), (way.expected or ways[names[0]]).weights(), start)
    if not math.isfinite(apart[names[0]]):
        raise CaseError(
            f"Expected the weights of {case.model} to stay finite in {CHECKED} steps of {case.optimizer} with PyTorch's default "
            "options (SGD: lr=0.1), got others. Scale the loss, or measure with another optimizer."
        )
    # In half precision five steps are mostly rounding, of which PyTorch's own forms make different ones: not judged.
    is_judged = all(torch.finfo(w.dtype).eps < 1e-5 for w in ways[names[0]].weights())
    if wrong := [name for name, distance in apart.items() if is_judged and not distance < 0.01]:
        raise RuntimeError(
            f"Expected the same weights after {CHECKED} steps in every way to train, got others from {', '.join(wrong)} on "
            f"{case}. The figures would mean nothing. If the model draws random numbers, let it draw them from torch alone."
        )
    return ways, apart, notes


def _first_sentence(error: Exception) -> str:
    """The message's, where it is written as sentences, as those of manualgrad are; else the kind of error and a line."""
    text = str(error)
    if isinstance(error, ValueError | TypeError) and text.endswith("."):
        return text.split(". ")[0].removesuffix(".") + "."
    return said(error)


def _apart(weights: list[Tensor], expected: list[Tensor], start: list[Tensor]) -> float:
    """Less what rounding to the weights' own precision can do, which counts where they have hardly moved."""

    def distance(x: list[Tensor], y: list[Tensor]) -> float:
        return math.hypot(*(float(torch.dist(p.cpu(), q.cpu())) for p, q in zip(x, y, strict=True)))

    rounding = math.hypot(*(torch.finfo(p.dtype).eps * float(p.norm()) for p in start))
    moved = distance(expected, start)
    return max(0.0, distance(weights, expected) - rounding) / (moved or rounding or 1.0)


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
    return {"lower": lower, "seconds": median, "upper": upper}


def peak_bytes(case: Sequence[Any], name: str) -> int | None:
    """Peak memory of a few steps above what the model, the batch and the optimizer's state hold.

    On CUDA, what the caching allocator has handed out. On the CPU the growth of the resident set, which Linux alone tells
    (elsewhere None). Small steps have brought in the libraries' own buffers before. The buffers that a way keeps from one step
    to the next count too, except what the compiler keeps.
    """
    what = Case(*case)
    WAYS["plain" if what.net is None else name](what._replace(model="8-8 relu relu", batch=2, loss=None)).step()
    way = WAYS[name](what)
    before = _held(what.device)
    way.step()  # makes the optimizer's state, and what a way keeps from one step to the next
    if way.task is not None:
        way.task.model.zero_grad()
    held = _held(what.device)
    growth = peak_growth(way.step, what.device)
    if before is None or held is None or growth is None:
        return None
    return growth + (0 if name == "torch.compile" else max(0, held - before - _state_bytes(way)))


def peak_growth(step: Callable[[], Any], device: str, steps: int = 3) -> int | None:
    """Peak memory of so many steps above what is held before."""
    held = _held(device)
    if held is None:
        return None
    for _ in range(steps):
        step()
    return (torch.cuda.max_memory_allocated() if device == "cuda" else _status("VmHWM")) - held


def _held(device: str) -> int | None:
    """Bytes in use, from which on the peak counts."""
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    if not STATUS.exists():
        return None
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # glibc's: returns free pages
        trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    return _status("VmRSS")


def _status(key: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(key + ":"))
    return 1024 * int(line.split()[1])


def _state_bytes(way: Way) -> int:
    """Of what the optimizers keep from one step to the next."""
    kept = [value for optimizer in way.optimizers for state in optimizer.state.values() for value in state.values()]
    return sum(value.nbytes for value in kept if isinstance(value, Tensor))
