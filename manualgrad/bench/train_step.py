"""`manualgrad bench --train-step`: microseconds per training step, TrainStep against its rivals.

    manualgrad bench --train-step [--quick] [--no-compile] [--threads N] [--seconds S] [--json FILE]

One process; the rivals take turns, in an order that moves on by one each time, a block of steps each, so that what slows the
machine for a while slows all; the median block counts. A ratio is a rival's time over TrainStep's. Under glibc's malloc part of
a wide net's ratio is page faults of fresh gradients; preload jemalloc or tcmalloc to see the rest. Before anything is measured
each rival has to reach the same weights.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from manualgrad.bench.train_step_rivals import Net, Rival, rivals


NETS = [
    Net((784, 30, 10), 1, "sigmoid"),
    Net((784, 30, 10), 10, "sigmoid"),
    Net((784, 30, 10), 128, "sigmoid"),
    Net((64,) * 9, 32, "relu"),
    Net((512, 1024, 1024, 512), 1, "relu"),
    Net((512, 1024, 1024, 512), 8, "relu"),
    Net((512, 1024, 1024, 512), 32, "relu"),
    Net((512, 1024, 1024, 512), 128, "relu"),
    Net((1024, 4096, 4096, 4096, 1024), 1, "relu"),
    Net((1024, 4096, 4096, 4096, 1024), 8, "relu"),
    Net((1024, 4096, 4096, 4096, 1024), 64, "relu"),
]
QUICK = NETS[1:2]
BLOCKS, BLOCK_SECONDS = 15, 0.02  # turns of each rival at least, and how long one takes
CHECKED = 5  # steps before the weights are compared


def measure(net: Net, compiled: bool, at_least: float) -> dict[str, Any]:
    """Seconds per step of each rival, and how far its weights are from those expected after the same number of steps.

    Args:
        at_least: seconds to spend on it.

    Raises:
        RuntimeError: a rival has reached other weights, so that it has not computed the same.
    """
    torch.manual_seed(0)
    ways = rivals(net, compiled)
    starts = [[w.clone() for w in way.weights()] for way in ways]
    for way in ways:
        for _ in range(CHECKED):
            way.step()
            if way.expected is not None:
                way.expected.step()
    differences = {
        way.name: _difference(way, way.expected or ways[0], start) for way, start in zip(ways, starts, strict=True)
    }
    wrong = [name for name, difference in differences.items() if not difference < 0.01]
    if wrong:
        raise RuntimeError(
            f"The benchmark expected the same weights from every rival, got others from {', '.join(wrong)} on {net}. "
            "Its figures would mean nothing; please report this."
        )
    repeats = {way.name: max(1, int(BLOCK_SECONDS / _seconds(way.step, 3))) for way in ways}
    blocks: dict[str, list[float]] = {way.name: [] for way in ways}
    gc.collect()
    gc.disable()
    try:
        start, i = time.perf_counter(), 0
        while i < BLOCKS or time.perf_counter() < start + at_least:
            for way in [*ways[i % len(ways) :], *ways[: i % len(ways)]]:
                blocks[way.name].append(_seconds(way.step, repeats[way.name]))
            i += 1
    finally:
        gc.enable()
    seconds = {name: statistics.median(times) for name, times in blocks.items()}
    return {"net": str(net), "threads": torch.get_num_threads(), "seconds": seconds, "differences": differences}


def _seconds(step: Callable[[], Any], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        step()
    return (time.perf_counter() - start) / repeats


def _difference(way: Rival, expected: Rival, start: list[Tensor]) -> float:
    """The largest difference in a weight, relative to the largest change of one. Rounding alone makes about 1e-4."""

    def largest(pairs: Iterable[tuple[Tensor, Tensor]]) -> float:
        return max((p - q).abs().max().item() for p, q in pairs)

    reached = expected.weights()
    return largest(zip(way.weights(), reached, strict=True)) / largest(zip(reached, start, strict=True))


def table(results: Sequence[dict[str, Any]]) -> str:
    """Per net: TrainStep's time, and each rival's with its ratio."""
    lines = []
    for result in results:
        seconds = result["seconds"]
        ours = seconds["TrainStep"]
        best = min(time for name, time in seconds.items() if name.startswith("autograd"))
        lines.append(f"{result['net']}, {result['threads']} thread(s): {best / ours:.2f} x the best autograd + SGD")
        lines += [f"  {name:26s} {1e6 * time:10.1f} us  {time / ours:6.2f} x" for name, time in seconds.items()]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; returns 0. With `--json FILE` also write the numbers."""
    parser = argparse.ArgumentParser(prog="manualgrad bench --train-step", description=__doc__.split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="784-30-10 at batch 10 alone")
    parser.add_argument(
        "--no-compile", action="store_true", help="leave out torch.compile, which takes minutes to start"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="the same for all rivals")
    parser.add_argument("--seconds", type=float, default=8.0, help="to spend on each net at least")
    parser.add_argument("--only", help="only nets whose name contains this")
    parser.add_argument("--json", help="a file for the numbers")
    options = parser.parse_args(argv)
    results = []
    preloaded = os.environ.get("LD_PRELOAD") or "the system's"
    print(f"torch {torch.__version__}, malloc: {preloaded}")
    torch.set_num_threads(options.threads)
    if options.threads == 1:  # read by JAX when it starts
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false"
    for net in QUICK if options.quick else NETS:
        if options.only is None or options.only in str(net):
            results.append(measure(net, not options.no_compile, options.seconds))
            print(table(results[-1:]), flush=True)
    if options.json:
        with open(options.json, "w") as file:
            json.dump(results, file, indent=2)
    return 0


if __name__ == "__main__":
    sys.exit(main())
