"""Speed and memory against the batch size, drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from manualgrad.bench.rows import Rows
from manualgrad.bench.ways import OURS
from manualgrad.explain.figures import COLOURS, MARKERS


def plot(rows: Rows, path: Path) -> None:
    """For each model, how many times as fast as plain PyTorch ours are, and the peaks of all ways."""
    from matplotlib.figure import Figure

    models = list(dict.fromkeys(row.model for row in rows))
    figure = Figure(figsize=(11, 4.2 * len(models)), layout="constrained")
    for (speed, memory), model in zip(figure.subplots(len(models), 2, squeeze=False), models, strict=True):
        of_model = [row for row in rows if row.model == model]
        ours = [(row, row.speed) for row in of_model if row.way in OURS and row.speed]
        _draw(speed, f"{model}: speed", "time of the fastest plain PyTorch / ours (no unit)", ours)
        speed.axhline(1, color="black", linewidth=0.8)
        peaks = [(row, max(row.peak_bytes / 2**20, 0.01)) for row in of_model if row.peak_bytes is not None]
        _draw(memory, f"{model}: memory", "peak above weights, state and batch (MiB)", peaks)
        if peaks:
            _plain_numbers(memory)
    figure.savefig(path, dpi=110)


def _draw(axes: Any, title: str, unit: str, points: list[tuple[Any, float]]) -> None:
    series: dict[tuple, list[tuple[int, float]]] = {}
    for row, value in points:
        series.setdefault((row.way, row.optimizer, row.clip, row.machine), []).append((row.batch, value))
    changing = [len({key[i] for key in series}) > 1 for i in range(4)]
    for i, (key, of_series) in enumerate(series.items()):
        words = [key[0], key[1], "clipped" if key[2] else "", key[3]]
        label = ", ".join(
            word for word, wanted in zip(words, changing, strict=True) if word and (wanted or word == key[0])
        )
        style = {"marker": MARKERS[i % len(MARKERS)], "color": COLOURS[i % len(COLOURS)]}
        axes.plot(*zip(*of_series, strict=True), label=label, **style)
    axes.set_title(title)
    axes.set_ylabel(unit)
    axes.set_xscale("log", base=2)
    axes.set_xlabel("batch size (rows)")
    if series:
        axes.legend(fontsize=8)
    else:
        axes.text(0.5, 0.5, "not measured", ha="center", transform=axes.transAxes)


def _plain_numbers(axes: Any) -> None:
    """1.46 and not 1.46 x 10^0, a few of them, however near to each other the values are."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(MaxNLocator(6) if high < 10 * low else LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(lambda size, _: f"{size:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
