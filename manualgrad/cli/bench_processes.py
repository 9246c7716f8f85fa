"""`manualgrad bench --processes 2 4`: exchange_factors against DistributedDataParallel, on loopback or over a shaped link."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch

from manualgrad.bench.case import Case
from manualgrad.bench.children import SYSTEM
from manualgrad.bench.on_paper import break_even_rows, ddp_seconds, our_seconds
from manualgrad.bench.process_group import in_group
from manualgrad.bench.processes import OURS, WAYS
from manualgrad.distributed.cost import Costs


MEASURED_MEMORY = ("exchange_factors", "DDP", "DDP, bucket views")
PAPER_WORLDS = (2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


WIDE = "1024-4096-4096-4096-1024 relu"


def main(argv: Sequence[str]) -> int:
    """Measure and print. Returns the exit status."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.model, arguments.batch, arguments.memory_batch, arguments.seconds = "192-192-10 relu", [8], [], 0.1
    net = Case(arguments.model, 1).net
    if net is None:
        parser.error(f"expected a net such as {WIDE!r}, got {arguments.model!r}.")
    print(
        f"torch {torch.__version__}, malloc: {os.environ.get('LD_PRELOAD') or SYSTEM}, {arguments.threads} thread(s) each"
    )
    if arguments.quick:
        print("quick: a check that it runs, not a measurement")
    results: list[dict[str, Any]] = []
    try:
        for world, rows in product(arguments.processes, arguments.batch):
            measured = _measured("times", world, rows, arguments, names=arguments.ways, seconds=arguments.seconds)
            results.append(
                {"processes": world, "link": arguments.link, "rows": rows, "sizes": net.sizes, **measured[0]}
            )
            print("\n".join(lines(results[-1])), flush=True)
        for world, rows, name in product(arguments.processes, arguments.memory_batch, MEASURED_MEMORY):
            peaks = _measured("memory", world, rows, arguments, name=name)
            results.append({"processes": world, "link": arguments.link, "rows": rows, "way": name, "peak_bytes": peaks})
            sizes = ", ".join("not told here" if size is None else f"{size / 2**20:.0f}" for size in peaks)
            print(f"{world} processes, {rows} rows each, {name}: peak above the weights {sizes} MiB", flush=True)
    except (ValueError, RuntimeError) as error:
        raise SystemExit(f"manualgrad bench: error: {error}") from error
    print("\n".join(paper([result for result in results if result.get("costs")])), end="")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2))
    return 0


def _measured(task: str, world: int, rows: int, arguments: argparse.Namespace, **options: Any) -> list[Any]:
    case = [arguments.model, rows]
    return in_group(task, world, arguments.link, arguments.threads, case=case, **options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="manualgrad bench --processes", description=__doc__)
    add = parser.add_argument
    add("--processes", type=positive, nargs="+", default=[2, 4], help="of a gloo group on this machine")
    add(
        "--link",
        help="such as 1gbit: each process in a network namespace of its own (root on Linux); default: loopback",
    )
    add("--model", default=WIDE, help='a net such as "784-30-10 sigmoid"')
    add("--batch", type=positive, nargs="*", default=[1, 8, 32, 512], help="rows of each process")
    add("--memory-batch", type=positive, nargs="*", default=[8], help="the same for peak memory")
    add("--ways", nargs="+", choices=WAYS, metavar="WAY", default=list(WAYS), help=f"of {', '.join(WAYS)}")
    add("--threads", type=positive, default=1, help="of each process")
    add("--seconds", type=float, default=10.0, help="to spend on each batch at least")
    add("--json", type=Path, help="a file for the numbers")
    add("--quick", action="store_true", help="a small net and a moment for each: does it run?")
    return parser


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a positive whole number, got {text!r}.")
    return int(text)


def lines(result: Mapping[str, Any]) -> Iterator[str]:
    """A title, and for each way its median time, what a process sends, DDP's time over its own, and what sent factors."""
    link = "loopback" if result["link"] is None else result["link"]
    yield f"{result['processes']} processes, {link}, {result['rows']} rows each"
    seconds, weights = result["seconds"], len(result["sizes"]) - 1
    for name, time in seconds.items():
        ratio = f"{seconds['DDP'] / time:6.2f} x DDP" if "DDP" in seconds else ""
        chosen = f"  factors of {result['factored'][name]} of {weights} weights" if name in OURS else ""
        yield f"  {name:18s} {1e3 * time:9.1f} ms  {result['bytes'][name] / 1e6:8.2f} MB sent {ratio}{chosen}"
    for name, why in result["skipped"].items():
        yield f"  {name} was not measured: {why}"


def paper(results: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What the costs that were measured say of more processes, beside what was measured."""
    if not results:
        return
    yield "On paper, time of DDP over exchange_factors (measured), and rows up to which the largest weight sends factors"
    rows_of: dict[int, Mapping[str, Any]] = {}
    for result in results:
        rows_of.setdefault(result["rows"], result)
    first = results[0]
    costs = Costs(**first["costs"])
    sizes = first["sizes"]
    m, n = max(zip(sizes[1:], sizes[:-1], strict=True), key=lambda shape: shape[0] * shape[1])
    yield (
        f"at {costs.bandwidth:.2g} bytes/s sent, {costs.flops:.2g} FLOP/s, {costs.update:.2g} bytes/s updated from factors, "
        f"{costs.gradient:.2g} from gradients"
    )
    yield f"{'processes':>9s}" + "".join(f"{f'{rows} rows':>16s}" for rows in rows_of) + f"{'break-even':>12s}"
    for world in PAPER_WORLDS:
        cells = []
        for rows, of_rows in rows_of.items():
            given = (sizes, rows, world, costs, of_rows["latency"], of_rows["forward_and_delta"])
            ratio = f"{ddp_seconds(*given) / our_seconds(*given):.1f}"
            for result in results:
                if (result["processes"], result["rows"]) == (world, rows) and "DDP" in result["seconds"]:
                    ratio += f" ({result['seconds']['DDP'] / result['seconds']['exchange_factors']:.1f})"
            cells.append(f"{ratio:>16s}")
        yield f"{world:9d}" + "".join(cells) + f"{break_even_rows(m, n, world, costs):12d}"
    yield ""
