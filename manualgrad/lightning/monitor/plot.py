"""The monitor's figure: the error from layer to layer, and each quantity over the training."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from manualgrad.explain.figures import COLOURS
from manualgrad.explain.printable import printable
from manualgrad.extras import require
from manualgrad.lightning.monitor.layer_record import LayerRecord


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


# The markers carry the same information as the colours.
SAMPLES = tuple(zip(COLOURS, "os^", strict=False))
MARKERS = "osD^v<>P"
MOST_NAMES = 16
OVER_TIME = {
    "grad_norm": ("Gradient", "|∂C/∂w|, Frobenius norm\n(cost per unit of weight)"),
    "update_ratio": ("Update relative to weights", "|Δw| / |w| (no unit)"),
    "idle": ("Units that learn nothing", "saturated or dead (% of units)"),
}


def plot(history: Sequence[LayerRecord]) -> "Figure":
    """Four panels: |delta| layer by layer in the first, middle and last sample; gradient, update and idle units by step.

    Raises:
        ValueError: nothing has been recorded.
        MissingExtraError: matplotlib is not installed.
    """
    require("matplotlib", extra="demo", purpose="BackpropMonitor.plot()")
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    if not history:
        raise ValueError("BackpropMonitor.plot() expected a history, got none. Call it after Trainer.fit.")
    layers = list(dict.fromkeys(record.layer for record in history))
    names = [printable(layer, 40) for layer in layers]
    figure = Figure(figsize=(11, 8), layout="constrained")
    figure.suptitle("Backpropagation, layer by layer")
    panels = figure.subplots(2, 2)
    _draw_profile(panels[0, 0], history, layers)
    spread = max(1, len(layers) - 1)
    styles = [(colormaps["cividis"](0.9 * i / spread), MARKERS[i % len(MARKERS)]) for i in range(len(layers))]
    for axes, (quantity, (title, unit)) in zip(panels.flat[1:], OVER_TIME.items(), strict=True):
        logarithmic = False
        for layer, (colour, marker) in zip(layers, styles, strict=True):
            seen = [(r.step, x) for r in history if r.layer == layer and (x := _value(r, quantity)) is not None]
            if seen:
                axes.plot(*zip(*seen, strict=True), marker=marker, markersize=4, color=colour)
            logarithmic |= quantity != "idle" and any(0 < x < math.inf for _, x in seen)
        axes.set(title=title, xlabel="step (optimizer updates)", ylabel=unit)
        if logarithmic:
            axes.set_yscale("log")
        if quantity == "idle":
            axes.set_ylim(-3, 103)
    lines = [Line2D([], [], color=colour, marker=marker) for colour, marker in styles]
    every = -(-len(layers) // MOST_NAMES)
    figure.legend(lines[::every], names[::every], title="layer, first to last", loc="outside right upper")
    return figure


def _draw_profile(axes: "Axes", history: Sequence[LayerRecord], layers: Sequence[str]) -> None:
    steps = sorted({record.step for record in history})
    chosen = dict.fromkeys((steps[0], steps[len(steps) // 2], steps[-1]))
    for step, (colour, marker) in zip(chosen, SAMPLES, strict=False):
        seen = {r.layer: r.delta_norm for r in history if r.step == step and r.delta_norm}
        places = [i for i, layer in enumerate(layers) if layer in seen]
        norms = [seen[layers[i]] for i in places]
        axes.plot(places, norms, color=colour, marker=marker, label=f"step {step}")
    every = -(-len(layers) // MOST_NAMES)
    names = [printable(layer, 40) for layer in layers[::every]]
    axes.set_xticks(range(0, len(layers), every), names, rotation=30, ha="right")
    axes.set(title="Error", xlabel="layer, first to last: the error comes from the right")
    axes.set(ylabel="|δ|, δ = ∂C/∂z (cost per unit of z)", yscale="log")
    axes.legend()


def _value(record: LayerRecord, quantity: str) -> float | None:
    if quantity != "idle":
        return getattr(record, quantity)
    idle = record.saturated if record.dead is None else record.dead
    return None if idle is None else 100 * idle
