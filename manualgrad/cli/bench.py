"""`manualgrad bench`: one training step against autograd, torch.compile and the optimizer in the backward pass."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from manualgrad.bench import report
from manualgrad.bench.children import CUDA, JEMALLOC, SYSTEM, jemalloc, measured
from manualgrad.bench.problem import TORCH_ACTIVATIONS
from manualgrad.bench.rivals import CANNOT_CLIP, OURS, RIVALS, TRAIN_STEP


WIDE, MIDDLE, SMALL = "1024-4096-4096-4096-1024 relu", "512-1024-1024-512 relu", "784-30-10 sigmoid"
BATCHES = {SMALL: (10,)}  # of nets that have their own by default
TRAIN_STEP_BATCHES = {
    SMALL: (1, 10, 128),
    "64-64-64-64-64-64-64-64-64 relu": (32,),
    MIDDLE: (1, 8, 32, 128),
    WIDE: (1, 8, 64),
}
QUICK = "--nets|192-192-10 relu|--batches|8|--clip-batches|--memory-batches|8|--seconds|0.1|--rivals|SGD loop"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the tables, write bench.json and bench.png. Returns the exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if "--train-step" in argv:  # options of its own
        return _train_step(_train_step_parser().parse_args(argv))
    quick = "--quick" in argv
    if quick:
        argv = [*QUICK.split("|"), *(option for option in argv if option != "--quick")]  # what follows wins
    arguments = _parser().parse_args(argv)
    if arguments.draw:
        result = report.joined([json.loads(file.read_text()) for file in arguments.draw])
    else:
        result = run(arguments)
        result["quick"] = quick
    report.print_tables(result)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "bench.json").write_text(json.dumps(result, indent=2))
    report.plot(result, arguments.out / "bench.png")
    print(f"Written: {arguments.out / 'bench.json'} and {arguments.out / 'bench.png'}")
    return 0


def _train_step(arguments: argparse.Namespace) -> int:
    """Measure `TrainStep` beside its rivals, with the allocator that is preloaded here; print each net as it is done."""
    preloaded = os.environ.get("LD_PRELOAD") or "the system's"
    print(f"torch {torch.__version__}, malloc: {preloaded}")
    names = [name for name in TRAIN_STEP if not (arguments.no_compile and name == "torch.compile")]
    results = []
    for net, batches in ({SMALL: (10,)} if arguments.quick else TRAIN_STEP_BATCHES).items():
        for rows in batches:
            title = f"{net}, batch {rows}"
            if arguments.only is not None and arguments.only not in title:
                continue
            problem = {**_sizes(net), "rows": rows, "is_closed": True}
            times = measured("time", SYSTEM, arguments.threads, names=names, problem=problem, seconds=arguments.seconds)
            results.append({"net": title, "threads": arguments.threads, **times})
            print("\n".join(report.lines(results[-1])), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2))
    return 0


def _train_step_parser() -> argparse.ArgumentParser:
    summary = "Microseconds per training step, TrainStep against its rivals, which all have to reach the same weights."
    parser = argparse.ArgumentParser(prog="manualgrad bench --train-step", description=summary)
    add = parser.add_argument
    add("--train-step", action="store_true", help=argparse.SUPPRESS)
    add("--quick", action="store_true", help="784-30-10 at batch 10 alone")
    add("--no-compile", action="store_true", help="leave out torch.compile, which takes minutes to start")
    add("--threads", type=_positive, default=torch.get_num_threads(), help="the same for all rivals")
    add("--seconds", type=float, default=8.0, help="to spend on each net at least")
    add("--only", help="only nets whose name contains this")
    add("--json", type=Path, help="a file for the numbers")
    return parser


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="manualgrad bench", description=__doc__)
    add = parser.add_argument
    add("--nets", type=_net, nargs="+", default=[WIDE, MIDDLE, SMALL], help='such as "784-30-10 sigmoid"')
    add("--batches", type=_positive, nargs="*", help="default: 1 8 32 128 512 2048; 10 for 784-30-10")
    add("--clip-batches", type=_positive, nargs="*", help="also with clip_grad_norm_; default: 8, none for 784-30-10")
    add("--memory-batches", type=_positive, nargs="*", help="default: 8 64 512, none for 784-30-10")
    add("--rivals", nargs="+", choices=RIVALS, default=[name for name in RIVALS if name != "torch.compile"])
    add("--compile", action="store_true", help="torch.compile too: half a minute more for each batch")
    add("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    add("--allocators", nargs="+", choices=(SYSTEM, JEMALLOC), default=[SYSTEM, JEMALLOC], help="on the CPU")
    add("--threads", type=_positive, default=torch.get_num_threads(), help="on the CPU; default: PyTorch's choice")
    add("--seconds", type=float, default=10.0, help="to spend on each batch and allocator, roughly")
    add("--out", type=Path, default=Path("manualgrad_bench"), help="folder for bench.json and bench.png")
    add("--draw", type=Path, nargs="+", help="measure nothing: tables and plot of these bench.json files together")
    add("--quick", action="store_true", help="a small net and a moment for each: does it run?")
    add("--train-step", action="store_true", help="measure TrainStep instead; takes options of its own")
    return parser


def _net(text: str) -> str:
    sizes, _, activation = text.partition(" ")
    parts = sizes.split("-")
    if activation not in TORCH_ACTIVATIONS or len(parts) < 2 or not all(x.isdecimal() and int(x) > 0 for x in parts):
        raise argparse.ArgumentTypeError(
            f"expected sizes and one of {', '.join(TORCH_ACTIVATIONS)}, got {text!r}. Pass for example '784-30-10 sigmoid'."
        )
    return text


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a positive whole number, got {text!r}.")
    return int(text)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """All measurements that the arguments ask for, as they go into bench.json."""
    notes: list[str] = []
    allocators = list(dict.fromkeys(arguments.allocators)) if arguments.device == "cpu" else [CUDA]
    if JEMALLOC in allocators and jemalloc() is None:
        allocators.remove(JEMALLOC)
        notes.append("jemalloc was not measured: it is not installed (Debian: apt-get install libjemalloc2).")
    nets = [_measured_net(net, allocators, arguments) for net in dict.fromkeys(arguments.nets)]
    return {"machine": _machine(arguments), "nets": nets, "notes": notes}


def _measured_net(net: str, allocators: list[str], arguments: argparse.Namespace) -> dict[str, Any]:
    of_net = {**_sizes(net), "device": arguments.device}
    names = list(dict.fromkeys([*OURS, *arguments.rivals, *(["torch.compile"] if arguments.compile else [])]))
    results, memory = [], []
    for rows, clip in _steps(net, arguments):
        for allocator in allocators:
            ways = [name for name in names if not (clip and name in CANNOT_CLIP)]
            problem = {**of_net, "rows": rows, "clip": clip}
            times = measured(
                "time", allocator, arguments.threads, names=ways, problem=problem, seconds=arguments.seconds
            )
            results.append({"batch": rows, "clip": clip, "allocator": allocator, **times})
    default = () if net in BATCHES else (8, 64, 512)
    for rows in default if arguments.memory_batches is None else arguments.memory_batches:
        problem, allocator = {**of_net, "rows": rows}, CUDA if arguments.device == "cuda" else SYSTEM
        peaks = {name: measured("memory", allocator, arguments.threads, name=name, problem=problem) for name in names}
        memory.append({"batch": rows, "bytes": peaks})
    sizes = of_net["sizes"]
    m, n = max(zip(sizes[1:], sizes[:-1], strict=True), key=lambda pair: pair[0] * pair[1])
    return {"name": net, "limit": m * n / (m + n), "results": results, "memory": memory}


def _sizes(net: str) -> dict[str, Any]:
    shape, activation = net.split()
    return {"sizes": [int(size) for size in shape.split("-")], "activation": activation}


def _steps(net: str, arguments: argparse.Namespace) -> Iterator[tuple[int, bool]]:
    """(batch, whether gradients are clipped)."""
    batches, clipped = arguments.batches, arguments.clip_batches
    for rows in BATCHES.get(net, (1, 8, 32, 128, 512, 2048)) if batches is None else batches:
        yield rows, False
    for rows in (() if net in BATCHES else (8,)) if clipped is None else clipped:
        yield rows, True


def _machine(arguments: argparse.Namespace) -> dict[str, Any]:
    versions = {"torch": torch.__version__, "python": platform.python_version(), "system": platform.platform()}
    if arguments.device == "cuda":
        return {"device": torch.cuda.get_device_name(), "threads": arguments.threads, **versions}
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return {"device": f"{model or 'CPU'}, {os.cpu_count()} cores", "threads": arguments.threads, **versions}


if __name__ == "__main__":
    sys.exit(main())
