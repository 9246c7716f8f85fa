"""The results as tables and as a plot."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from manualgrad.bench.rivals import BEST_OF_AUTOGRAD, OURS
from manualgrad.explain.figures import COLOURS, MARKERS


SHORT = {
    "manualgrad": "factored",
    "manualgrad, dense gradients": "dense",
    "SGD loop": "loop",
    "SGD foreach": "foreach",
    "SGD fused": "fused",
    "optimizer in backward": "in backward",
    "torch.compile": "compile",
}

QUICK = "quick: a check that it runs, not a measurement"

LEGEND = """\
Medians of a step, in turns in one process: manualgrad with factored and with dense gradients, then its rivals.
ratio: time of the best torch.optim.SGD (loop, foreach, fused) over manualgrad's. Above 1, manualgrad is faster.
x floor: manualgrad's time over the least that memory and arithmetic of this machine allow.
"""


def speed_up(result: Mapping[str, Any], name: str = OURS[0]) -> float | None:
    """Time of the best variant of torch.optim.SGD over that of `name`: above 1, `name` is faster. None without a variant."""
    seconds = {rival: time["median"] for rival, time in result["seconds"].items()}
    best = min((seconds[rival] for rival in BEST_OF_AUTOGRAD if rival in seconds), default=None)
    return None if best is None else best / seconds[name]


def lines(result: Mapping[str, Any]) -> list[str]:
    """A net of `manualgrad bench --train-step`: each way's median time, and its ratio to TrainStep's."""
    seconds = {name: time["median"] for name, time in result["seconds"].items()}
    ours = seconds["TrainStep"]
    return [
        f"{result['net']}, {result['threads']} thread(s): {speed_up(result, 'TrainStep'):.2f} x the best autograd + SGD",
        *(f"  {_label(name):26s} {1e6 * time:10.1f} us  {time / ours:6.2f} x" for name, time in seconds.items()),
        *(f"  {name} was not measured: {why}" for name, why in result["skipped"].items()),
    ]


def _label(name: str) -> str:
    return f"autograd + {name}" if name in BEST_OF_AUTOGRAD else name


def joined(reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Several reports of one machine as one; of what was measured twice the later counts.

    Raises:
        ValueError: they are of different machines.
    """
    first = reports[0]["machine"]
    for report in reports:
        if report["machine"] != first:
            raise ValueError(
                f"Expected reports of one machine, got {first} and {report['machine']}. Draw each by itself."
            )
    nets: dict[str, dict[str, Any]] = {}
    results: dict[tuple, Any] = {}
    memory: dict[tuple, Any] = {}
    for report in reports:
        for net in report["nets"]:
            nets[net["name"]] = dict(net)
            results |= {(net["name"], r["clip"], r["batch"], r["allocator"]): r for r in net["results"]}
            memory |= {(net["name"], row["batch"]): row for row in net["memory"]}
    for name, net in nets.items():
        net["results"] = [results[key] for key in sorted(results) if key[0] == name]
        net["memory"] = [memory[key] for key in sorted(memory) if key[0] == name]
    notes = list(dict.fromkeys(note for report in reports for note in report["notes"]))
    quick = any(report.get("quick", False) for report in reports)
    return {"machine": first, "nets": list(nets.values()), "notes": notes, "quick": quick}


def print_tables(report: Mapping[str, Any]) -> None:
    from rich.console import Console

    console = Console()
    console.width = max(console.width, 110)  # a narrower table could not be read
    machine = report["machine"]
    console.print(f"{machine['device']}, {machine['threads']} threads, float32, torch {machine['torch']}", markup=False)
    console.print(LEGEND, markup=False)
    for net in report["nets"]:
        for table in _tables(net):
            if report.get("quick", False):
                table.title = f"{table.title}\n{QUICK}"
            console.print(table)
    for note in [*report["notes"], *dict.fromkeys(_skipped(report))]:
        console.print(note, markup=False)


def _tables(net: Mapping[str, Any]) -> Iterator[Any]:
    from rich.table import Table

    for allocator in dict.fromkeys(result["allocator"] for result in net["results"]):
        results = [result for result in net["results"] if result["allocator"] == allocator]
        names = list(dict.fromkeys(name for result in results for name in result["seconds"]))
        table = Table(title=f"{net['name']}: ms per step, {allocator}")
        for heading in ("batch", "clip", *(SHORT[name] for name in names), "ratio", "ratio dense", "x floor"):
            table.add_column(heading, justify="right", no_wrap=True)
        for result in results:
            medians = {name: time["median"] for name, time in result["seconds"].items()}
            cells = [_number(medians[n] * 1e3, ".3g") if n in medians else "-" for n in names]
            ratios = [_number(speed_up(result, name), ".2f") for name in OURS]
            above = _number(medians[OURS[0]] / result["floor"]["seconds"], ".1f")
            table.add_row(str(result["batch"]), "yes" if result["clip"] else "", *cells, *ratios, above)
        yield table
    if net["memory"]:
        names = list(dict.fromkeys(name for row in net["memory"] for name in row["bytes"]))
        table = Table(title=f"{net['name']}: peak MiB above weights and batch, each in a process of its own")
        for heading in ("batch", *(SHORT[name] for name in names)):
            table.add_column(heading, justify="right", no_wrap=True)
        for row in net["memory"]:
            sizes = (row["bytes"].get(name) for name in names)
            table.add_row(str(row["batch"]), *(_number(size and size / 2**20, ".1f") for size in sizes))
        yield table


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _skipped(report: Mapping[str, Any]) -> Iterator[str]:
    for net in report["nets"]:
        for result in net["results"]:
            for name, why in result["skipped"].items():
                yield f"{name} was not measured on {net['name']}: {why}"


def plot(report: Mapping[str, Any], path: Path) -> None:
    """Speed-up and extra memory against the batch size, with r = mn / (m + n), where factors become as large as the product."""
    from matplotlib.figure import Figure

    nets: Sequence[Mapping[str, Any]] = report["nets"]
    figure = Figure(figsize=(11, 4.2 * len(nets)), layout="constrained")
    if report.get("quick", False):
        figure.suptitle(QUICK)
    grid = figure.subplots(len(nets), 2, squeeze=False)
    for (times, memory), net in zip(grid, nets, strict=True):
        _draw_speed(times, net)
        _draw_memory(memory, net)
        for axes in (times, memory):
            axes.axvline(net["limit"], color="grey", linestyle="--", label="r = mn / (m + n), largest weight")
            axes.set_xscale("log", base=2)
            axes.set_xlabel("batch size r (rows)")
            axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def _draw_speed(axes: Any, net: Mapping[str, Any]) -> None:
    series = dict.fromkeys((result["allocator"], result["clip"]) for result in net["results"])
    for (allocator, clip), colour, marker in zip(series, COLOURS, MARKERS, strict=False):
        chosen = [r for r in net["results"] if (r["allocator"], r["clip"]) == (allocator, clip)]
        points = [(r["batch"], ratio) for r in chosen if (ratio := speed_up(r)) is not None]
        label = f"{allocator}{', with clip_grad_norm_' if clip else ''}"
        axes.plot(*zip(*points, strict=True), marker=marker, color=colour, label=label)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_title(f"{net['name']}: speed")
    axes.set_ylabel("time of the best torch.optim.SGD / ours (no unit)")


def _draw_memory(axes: Any, net: Mapping[str, Any]) -> None:
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

    names = dict.fromkeys(name for row in net["memory"] for name in row["bytes"])
    for name, colour, marker in zip(names, COLOURS, MARKERS, strict=False):
        points = [
            (row["batch"], max(size / 2**20, 0.01))
            for row in net["memory"]
            if (size := row["bytes"].get(name)) is not None
        ]
        if points:
            axes.plot(*zip(*points, strict=True), marker=marker, color=colour, label=name)
    if net["memory"]:
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        axes.yaxis.set_major_locator(MaxNLocator(6) if high < 10 * low else LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(lambda size, _: f"{size:g}")  # 1.46 and not 1.46 x 10^0
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.text(0.5, 0.5, "not measured", ha="center", transform=axes.transAxes)
    axes.set_title(f"{net['name']}: memory")
    axes.set_ylabel("peak above weights and batch (MiB)")
