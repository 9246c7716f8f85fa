"""A traced step as a figure: how much error and gradient reaches each layer, what it does to the weights, and where."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from manualgrad.explain.figures import COLOURS, DIVERGING, MARKERS, new_figure
from manualgrad.explain.printable import printable
from manualgrad.explain.traced_step import TracedLayer, TracedStep, as_rows
from manualgrad.extras import require


MOST_MAPS = 6  # layers whose heat maps are drawn; of a deeper net the first and the last
MOST_POINTS = 2000  # weights of a layer that are drawn as points; of a larger one, evenly spaced ones


def plot(trace: TracedStep) -> Any:
    """A matplotlib figure. Above: norms by layer, and updates against weights; below: a row of heat maps for each layer.

    Raises:
        MissingExtraError: matplotlib is not installed.
        TypeError: complex numbers, which have no place on its axes.
    """
    require("matplotlib", extra="demo", purpose="Trace.plot()")
    if any(layer.z.is_complex() for layer in trace.layers):
        raise TypeError(
            "Trace.plot() expected real numbers, got a trace with complex ones. Plot parts of it: trace.layers[0].z.abs()."
        )
    mapped = [*enumerate(trace.layers, 1)]
    if len(mapped) > MOST_MAPS:
        mapped = [*mapped[: MOST_MAPS // 2], *mapped[-MOST_MAPS // 2 :]]
    figure = new_figure(11, 4 + 2.3 * len(mapped))
    figure.suptitle(f"One training step: {printable(trace.loss_name)} C = {trace.loss.item():.4g}, {trace.optimizer}")
    above, below = figure.subfigures(2, height_ratios=[3.6, 2.3 * len(mapped)])
    norms, updates = above.subplots(1, 2)
    _draw_norms(norms, trace)
    _draw_updates(updates, mapped)
    if len(mapped) < len(trace.layers):
        below.suptitle(f"The first and the last of {len(trace.layers)} layers", fontsize="medium")
    for axes, (number, layer) in zip(below.subplots(len(mapped), 3, squeeze=False), mapped, strict=True):
        _draw_maps(axes, number, layer)
    return figure


def _draw_norms(axes: Any, trace: TracedStep) -> None:
    """How large the error is in each layer: with sigmoids it shrinks on its way down."""
    x = range(len(trace.layers))
    for which, (label, name) in enumerate({"error delta": "delta", "gradient dC/dw": "grad_weight"}.items()):
        values = [_norm(getattr(layer, name)) for layer in trace.layers]
        axes.plot(x, values, marker=MARKERS[which], color=COLOURS[which], label=label)
    names = [_name(number, layer) for number, layer in enumerate(trace.layers, 1)]
    axes.set_xticks(x, names, rotation=30 if len(names) > 4 or max(map(len, names)) > 11 else 0)
    if all(_norm(layer.delta) > 0 and _norm(layer.grad_weight) > 0 for layer in trace.layers):
        axes.set_yscale("log")
    axes.set(title="Error and gradient of each layer", xlabel="layer, from the input to the output")
    axes.set_ylabel("2-norm of all entries (no unit)")
    axes.grid(alpha=0.3)
    axes.legend()


def _draw_updates(axes: Any, layers: list[tuple[int, TracedLayer]]) -> None:
    any_update = False
    for which, (number, layer) in enumerate(pair for pair in layers if pair[1].call == 0):
        update = layer.weight_after - layer.weight_before
        any_update |= bool((update != 0).any())
        ratio = _norm(update) / (_norm(layer.weight_before) or float("nan"))
        style = {"s": 18, "alpha": 0.7, "linewidths": 0, "marker": MARKERS[which], "color": COLOURS[which]}
        label = f"{_name(number, layer)}: {ratio:.1e}"
        axes.scatter(_entries(layer.weight_before), _entries(update.abs()), label=label, **style)
    if any_update:
        axes.set_yscale("log")
    axes.set(title="What the step does to each weight", xlabel="weight w before the step (no unit)")
    axes.set_ylabel("size of its update, |w after - w| (no unit)")
    axes.grid(alpha=0.3)
    beside_the_plot = {"loc": "upper left", "bbox_to_anchor": (1.02, 1)}
    axes.legend(title="layer: norm of the\nupdate / norm of w", fontsize="small", **beside_the_plot)


def _draw_maps(row: Sequence[Any], number: int, layer: TracedLayer) -> None:
    name = f"layer {_name(number, layer)}"
    _draw_map(row[0], f"Error delta, {name}", as_rows(layer.delta), "neuron", "example")
    _draw_map(row[1], f"Weight w before the step, {name}", layer.weight_before, "input", "neuron")
    _draw_map(row[2], f"Gradient dC/dw, {name}", layer.grad_weight, "input", "neuron")


def _draw_map(axes: Any, title: str, x: Tensor, across: str, down: str) -> None:
    from matplotlib.ticker import MaxNLocator

    x = x.double().cpu()
    largest = x[x.isfinite()].abs().max().item() if x.isfinite().any() else 0.0
    image = axes.imshow(x.numpy(), cmap=DIVERGING, vmin=-(largest or 1.0), vmax=largest or 1.0, aspect="auto")
    axes.set_title(title, fontsize="medium")
    axes.set(xlabel=f"{across} (index)", ylabel=f"{down} (index)")
    for axis, size in ((axes.yaxis, x.size(0)), (axes.xaxis, x.size(1))):
        axis.set_ticks(range(size)) if size <= 8 else axis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.figure.colorbar(image, ax=axes, label="value (no unit)")


def _name(number: int, layer: TracedLayer) -> str:
    """With dollar signs escaped: to matplotlib they begin a formula."""
    name = f"{number} named {printable(repr(layer.name), 40)}".replace("$", r"\$") if layer.name else "1, the model"
    return f"{name}, call {layer.call + 1}" if layer.call else name


def _norm(x: Tensor) -> float:
    return x.double().norm().item()


def _entries(x: Tensor) -> Any:
    entries = x.double().flatten().cpu()
    return entries[:: 1 + len(entries) // MOST_POINTS].numpy()
