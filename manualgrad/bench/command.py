"""`manualgrad bench`: one training step against autograd, torch.compile and the optimizer in the backward pass."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from manualgrad.bench import measure, report
from manualgrad.bench.rivals import OURS, RIVALS


WIDE, MIDDLE, SMALL = "1024-4096-4096-4096-1024 relu", "512-1024-1024-512 relu", "784-30-10 sigmoid"
JEMALLOC = ("/usr/lib/x86_64-linux-gnu/libjemalloc.so.2", "/usr/lib/aarch64-linux-gnu/libjemalloc.so.2")
NO_DECAY = "dirty_decay_ms:-1,muzzy_decay_ms:-1"  # freed pages are kept, as caching allocators do


def main(argv: Sequence[str] | None = None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    arguments = _parser().parse_args(argv)
    if arguments.child:
        print(json.dumps(_measured(json.loads(arguments.child))))
        return 0
    result = run(arguments)
    report.print_tables(result)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "bench.json").write_text(json.dumps(result, indent=2))
    report.plot(result, arguments.out / "bench.png")
    print(f"Written: {arguments.out / 'bench.json'} and {arguments.out / 'bench.png'}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="manualgrad bench", description=__doc__)
    parser.add_argument("--nets", nargs="+", default=[WIDE, MIDDLE, SMALL], help='such as "784-30-10 sigmoid"')
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32, 128, 512, 2048])
    parser.add_argument(
        "--memory-batches", type=int, nargs="*", default=[8, 64, 512], help="none: memory is not measured"
    )
    parser.add_argument("--clip-batches", type=int, nargs="*", default=[8], help="also with clip_grad_norm_")
    parser.add_argument(
        "--rivals", nargs="+", choices=RIVALS, default=[name for name in RIVALS if name != "torch.compile"]
    )
    parser.add_argument("--compile", action="store_true", help="torch.compile too: half a minute more for each batch")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--allocators", nargs="+", choices=("glibc malloc", "jemalloc"), default=["glibc malloc", "jemalloc"]
    )
    parser.add_argument("--seconds", type=float, default=2.0, help="to spend on each way at each batch, roughly")
    parser.add_argument(
        "--out", type=Path, default=Path("manualgrad_bench"), help="folder for bench.json and bench.png"
    )
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """All measurements, each set in a child process: an allocator is chosen when a process starts, and memory is its own."""
    notes, nets = [], []
    names = [*OURS, *arguments.rivals] + (["torch.compile"] if arguments.compile else [])
    allocators: dict[str, dict[str, str]] = (
        {"glibc malloc": {}} if arguments.device == "cpu" else {"CUDA caching allocator": {}}
    )
    if arguments.device == "cpu" and "jemalloc" in arguments.allocators:
        library = next((path for path in JEMALLOC if Path(path).exists()), None)
        if library is None:
            notes.append("jemalloc not measured: libjemalloc2 is not installed (apt-get install libjemalloc2).")
        else:
            allocators["jemalloc"] = {"LD_PRELOAD": library, "MALLOC_CONF": NO_DECAY}
    if arguments.device == "cpu" and "glibc malloc" not in arguments.allocators:
        del allocators["glibc malloc"]
    for net in arguments.nets:
        shape, activation = net.split()
        sizes = [int(size) for size in shape.split("-")]
        task = {"sizes": sizes, "activation": activation, "device": arguments.device, "seconds": arguments.seconds}
        results, memory = [], []
        for batch, clip in [(b, False) for b in arguments.batches] + [(b, True) for b in arguments.clip_batches]:
            for allocator, environment in allocators.items():
                ways = [name for name in names if not (clip and name == "optimizer in backward")]
                measured = _child({**task, "what": "time", "names": ways, "batch": batch, "clip": clip}, environment)
                results.append({"batch": batch, "clip": clip, "allocator": allocator, **measured})
        for batch in arguments.memory_batches:
            ways = [name for name in names if name != "torch.compile"]
            sizes_of = {name: _child({**task, "what": "memory", "name": name, "batch": batch}, {}) for name in ways}
            memory.append({"batch": batch, "bytes": sizes_of})
        m, n = max(zip(sizes[1:], sizes[:-1], strict=True), key=lambda pair: pair[0] * pair[1])
        nets.append({"name": net, "limit": m * n / (m + n), "results": results, "memory": memory})
    return {"machine": _machine(arguments.device), "nets": nets, "notes": notes}


def _child(task: dict[str, Any], environment: dict[str, str]) -> Any:
    command = [sys.executable, "-m", "manualgrad.bench.command", "--child", json.dumps(task)]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"Measuring {task} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def _measured(task: dict[str, Any]) -> Any:
    """What a child does."""
    sizes, activation, batch, device = task["sizes"], task["activation"], task["batch"], task["device"]
    if task["what"] == "memory":
        return measure.peak_bytes(task["name"], sizes, activation, batch, device)
    max_norm = 1.0 if task["clip"] else None
    trial = measure.step_times([OURS[0]], sizes, activation, batch, max_norm, repeats=3, device=device)
    repeats = int(min(2000, max(5, task["seconds"] / trial["seconds"][OURS[0]])))
    result = measure.step_times(task["names"], sizes, activation, batch, max_norm, repeats, device)
    return {**result, "repeats": repeats, "floor": measure.floor_seconds(sizes, batch, device)}


def _machine(device: str) -> dict[str, Any]:
    if device == "cuda":
        return {"device": torch.cuda.get_device_name(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return {"device": model or "CPU", "threads": torch.get_num_threads(), "torch": torch.__version__}


if __name__ == "__main__":
    sys.exit(main())
