"""The results as a table and as a plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from manualgrad.bench.rivals import BEST_OF_AUTOGRAD


SHORT = {
    "manualgrad": "factored",
    "manualgrad, dense gradients": "dense",
    "SGD loop": "loop",
    "SGD foreach": "foreach",
    "SGD fused": "fused",
    "optimizer in backward": "in backward",
    "torch.compile": "compile",
}


def speed_up(result: Mapping[str, Any], name: str = "manualgrad") -> float:
    """Time of the best variant of torch.optim.SGD over that of `name`: above 1, `name` is faster."""
    best = min(seconds for rival, seconds in result["seconds"].items() if rival in BEST_OF_AUTOGRAD)
    return best / result["seconds"][name]


def print_tables(report: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.width = max(console.width, 110)  # a narrower table could not be read
    machine = report["machine"]
    for net in report["nets"]:
        for allocator in dict.fromkeys(result["allocator"] for result in net["results"]):
            results = [result for result in net["results"] if result["allocator"] == allocator]
            names = list(dict.fromkeys(name for result in results for name in result["seconds"]))
            table = Table(
                title=f"{net['name']}, float32, {machine['device']}, {machine['threads']} threads, {allocator}\n"
                "median ms of a step: manualgrad with factored and dense gradients, then its rivals;\n"
                "ratio: time of the best torch.optim.SGD (loop, foreach, fused) over manualgrad's",
            )
            headings = [SHORT[name] for name in names]
            for heading in ("batch", "clip", *headings, "ratio", "ratio dense", "x floor"):
                table.add_column(heading, justify="right", no_wrap=True)
            for result in results:
                cells = [f"{result['seconds'][n] * 1e3:.3g}" if n in result["seconds"] else "-" for n in names]
                ratios = [f"{speed_up(result):.2f}", f"{speed_up(result, 'manualgrad, dense gradients'):.2f}"]
                above = f"{result['seconds']['manualgrad'] / result['floor']:.1f}"
                table.add_row(str(result["batch"]), "yes" if result["clip"] else "", *cells, *ratios, above)
            console.print(table)
        if net["memory"]:
            table = Table(title=f"{net['name']}: peak MiB above weights and batch, each in a process of its own")
            for heading in ("batch", *(SHORT[name] for name in net["memory"][0]["bytes"])):
                table.add_column(heading, justify="right", no_wrap=True)
            for row in net["memory"]:
                table.add_row(str(row["batch"]), *(f"{size / 2**20:.1f}" for size in row["bytes"].values()))
            console.print(table)
    for note in report["notes"]:
        console.print(note)


def plot(report: Mapping[str, Any], path: Path) -> None:
    """Speed-up and extra memory against the batch size, with r = mn / (m + n), where factors become as large as the product."""
    from matplotlib.figure import Figure

    nets: Sequence[Mapping[str, Any]] = report["nets"]
    figure = Figure(figsize=(11, 4.2 * len(nets)), layout="constrained")
    grid = figure.subplots(len(nets), 2, squeeze=False)
    colours = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000"]
    markers = "osD^vPX"
    for (times, memory), net in zip(grid, nets, strict=True):
        series = dict.fromkeys((result["allocator"], result["clip"]) for result in net["results"])
        for (allocator, clip), colour, marker in zip(series, colours, markers, strict=False):
            chosen = [r for r in net["results"] if (r["allocator"], r["clip"]) == (allocator, clip)]
            label = f"{allocator}{', clipped' if clip else ''}"
            batches, ratios = [r["batch"] for r in chosen], [speed_up(r) for r in chosen]
            times.plot(batches, ratios, marker=marker, color=colour, label=label)
        times.axhline(1, color="black", linewidth=0.8)
        times.set_title(f"{net['name']}: speed")
        times.set_ylabel("time of the best torch.optim.SGD / ours (no unit)")
        for i, name in enumerate(net["memory"][0]["bytes"] if net["memory"] else ()):
            sizes = [max(row["bytes"][name] / 2**20, 0.01) for row in net["memory"]]
            memory.plot([row["batch"] for row in net["memory"]], sizes, marker=markers[i], color=colours[i], label=name)
        memory.set_yscale("log")
        memory.set_title(f"{net['name']}: memory")
        memory.set_ylabel("peak above weights and batch (MiB)")
        for axes in (times, memory):
            axes.axvline(net["limit"], color="grey", linestyle="--", label="r = mn / (m + n) of the largest weight")
            axes.set_xscale("log", base=2)
            axes.set_xlabel("batch size r (rows)")
            axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)
