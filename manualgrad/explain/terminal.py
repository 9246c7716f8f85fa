"""A Trace as text: the four steps, each with its equation, the shapes and the numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from manualgrad.explain.blocks import beside, block, is_small, number, summary
from manualgrad.explain.equation_checks import (
    calls_of,
    error_comes_from,
    input_is_output_of,
    outputs_are_those_of,
    total_gradients,
    update_is_plain,
)


if TYPE_CHECKING:
    from manualgrad.trace import Trace, TracedLayer


class Line(NamedTuple):
    text: str
    style: str = ""  # rich's name for it


def plain(trace: Trace) -> str:
    """The four steps, without colours."""
    return "\n".join(line.text for line in _lines(trace))


def coloured(trace: Trace) -> Any:
    """The same for rich; negative numbers stand out."""
    from rich.console import Group
    from rich.text import Text

    lines = [Text(line.text, line.style, no_wrap=True, overflow="ignore") for line in _lines(trace)]
    for line in lines:
        line.highlight_regex(r"(?<![\w.])-\d[\w.+-]*", "blue")
    return Group(*lines)


def _lines(trace: Trace) -> Iterator[Line]:
    yield Line(f"One training step of {trace.optimizer}. Examples are rows.", "bold")
    yield from _forward(trace)
    yield from _loss(trace)
    yield from _backward(trace)
    yield from _update(trace)


def _forward(trace: Trace) -> Iterator[Line]:
    yield from _heading("1. FORWARD", "z = w a + b with the a of the layer below;  a = sigma(z)")
    for i, layer in enumerate(trace.layers):
        note = (
            "" if i == 0 or input_is_output_of(layer, trace.layers[i - 1]) else ", its input is not the layer below's a"
        )
        yield _layer(
            layer, f": {layer.weight_before.size(1)} -> {layer.weight_before.size(0)}, {layer.activation}{note}"
        )
        yield from _arrays(
            ("input a", layer.inputs),
            ("w", layer.weight_before),
            ("b", layer.bias_before),
            ("z", layer.z),
            ("a", layer.a),
            derivative=None if layer.activation == "identity" else layer.derivative,
        )


def _loss(trace: Trace) -> Iterator[Line]:
    last = trace.layers[-1]
    yield from _heading("2. LOSS AND OUTPUT ERROR", "delta = dC/da * sigma'(z)")
    yield Line(f"\n  C = {number(trace.loss.item())}  ({trace.loss_name})")
    if outputs_are_those_of(trace):
        yield from _arrays(("y", trace.targets), ("a", last.a), ("dC/da", last.cost_gradient), *_error(last))
    else:
        yield from _arrays(("y", trace.targets), ("outputs", trace.outputs), ("dC/d outputs", trace.output_gradient))


def _backward(trace: Trace) -> Iterator[Line]:
    yield from _heading(
        "3. BACKPROPAGATED ERROR AND GRADIENTS",
        "delta = (w^T delta of the layer above) * sigma'(z);  dC/dw = delta a^T,  dC/db = delta, summed over the examples",
    )
    layers = trace.layers
    for i in reversed(range(len(layers))):
        layer, note = layers[i], ""
        if i + 1 < len(layers) and not error_comes_from(layer, layers[i + 1]):
            note = ": dC/da has come through more than the layer above"
        yield _layer(layer, note)
        of_error = (
            ()
            if i == len(layers) - 1 and outputs_are_those_of(trace)
            else (("dC/da", layer.cost_gradient), *_error(layer))
        )
        yield from _arrays(*of_error, ("dC/dw", layer.grad_weight), ("dC/db", layer.grad_bias))


def _update(trace: Trace) -> Iterator[Line]:
    if all(update_is_plain(layer, trace) for layer in trace.layers if layer.trained):
        rule = f"w := w - eta dC/dw,  b := b - eta dC/db,  eta = {trace.lr:.6g}"
    else:
        rule = f"w and b := what {trace.optimizer} makes of dC/dw and dC/db"
    yield from _heading("4. UPDATE", rule)
    for layer in trace.layers:
        if layer.call > 0:
            continue
        calls = len(calls_of(layer, trace))
        note = f": dC/dw and dC/db are sums over its {calls} calls" if calls > 1 else ""
        yield _layer(
            layer,
            note if layer.trained else ": w is left as it is (frozen, not the optimizer's, or without a gradient)",
        )
        weight_gradient, bias_gradient = total_gradients(layer, trace)
        yield from _arrays(("w", layer.weight_before), ("dC/dw", weight_gradient), ("w after", layer.weight_after))
        yield from _arrays(("b", layer.bias_before), ("dC/db", bias_gradient), ("b after", layer.bias_after))


def _error(layer: TracedLayer) -> tuple[tuple[str, Tensor], ...]:
    return ("sigma'(z)", layer.derivative), ("delta", layer.delta)


def _heading(title: str, equation: str) -> Iterator[Line]:
    yield Line("")
    yield Line(title, "bold cyan")
    yield Line(f"   {equation}", "italic")


def _layer(layer: TracedLayer, note: str) -> Line:
    again = f", call {layer.call + 1}" if layer.call else ""
    return Line(
        f"\n  layer {layer.name!r}{again}{note}" if layer.name else f"\n  the model itself{again}{note}", "bold"
    )


def _arrays(*named: tuple[str, Tensor | None], derivative: Tensor | None = None) -> Iterator[Line]:
    """Small arrays whole and side by side, then a line for each large one."""
    present = [(name, x) for name, x in named if x is not None]
    for line in beside([block(name, x) for name, x in present if is_small(x)]):
        yield Line(f"    {line}".rstrip())
    for name, x in present:
        if not is_small(x):
            yield Line(f"    {summary(name, x, derivative if name == 'a' else None)}")
