"""A traced step as text: the four steps, each with its equation, the shapes and the numbers."""

import shutil
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from torch import Tensor

from manualgrad.activation.activation import activation_named
from manualgrad.activation.idle_units import is_rectifying
from manualgrad.explain.loss_formulas import are_class_indices, formula_of, per_example, targets_as_rows
from manualgrad.explain.number_format import displayed
from manualgrad.explain.printable import printable
from manualgrad.explain.text_blocks import beside, blocks, classes, idle, is_small, pictures, summary
from manualgrad.explain.traced_step import TracedLayer, TracedStep
from manualgrad.explain.which_equations_hold import (
    calls_of,
    error_comes_from,
    input_is_output_of,
    outputs_are_those_of,
    total_gradients,
    update_is_plain,
)


INDENT = " " * 4


class Line(NamedTuple):
    text: str
    style: str = ""  # rich's name for it


Part = Line | list[tuple[str, Tensor]]  # arrays stand side by side where there is room


def plain(trace: TracedStep, width: int | None = None) -> str:
    """The four steps, without colours. `width` is that of the terminal, or 80 where there is none."""
    return "\n".join(line.text for line in _laid_out(_parts(trace), width or shutil.get_terminal_size().columns))


def coloured(trace: TracedStep, width: int) -> Iterator[Any]:
    """The same as lines for rich; negative numbers stand out."""
    from rich.text import Text

    for line in _laid_out(_parts(trace), width):
        text = Text(line.text, line.style)
        text.highlight_regex(r"(?<![\w.])-\d[\w.+-]*", "blue")
        yield text


def images_as_text(images: Tensor, titles: Sequence[str]) -> str:
    """Images (r, height, width) as blocks of characters, side by side in the terminal's width."""
    room = shutil.get_terminal_size().columns - len(INDENT)
    return "\n".join(f"{INDENT}{line}".rstrip() for line in beside(pictures(images, titles), room))


def _laid_out(parts: Iterable[Part], width: int) -> Iterator[Line]:
    """Lines of at most `width` characters: sentences break between words, arrays between columns."""
    after_blocks = False
    for part in parts:
        if isinstance(part, Line):
            after_blocks = False
            yield from _wrapped(part, width)
        elif part:
            yield from [Line("")] if after_blocks else []
            after_blocks = True
            room = width - len(INDENT)
            arrays = [block for name, x in part for block in blocks(name, x, room)]
            yield from (Line(f"{INDENT}{text}".rstrip()) for text in beside(arrays, room))


def _wrapped(line: Line, width: int) -> Iterator[Line]:
    if len(line.text) <= width:
        yield line
        return
    indent = line.text[: len(line.text) - len(line.text.lstrip())]
    for text in textwrap.wrap(line.text, width, subsequent_indent=indent + INDENT):
        yield Line(text, line.style)


def _parts(trace: TracedStep) -> Iterator[Part]:
    yield Line(f"One training step of {trace.optimizer}. Examples are rows.", "bold")
    yield from _forward(trace)
    yield from _loss(trace)
    yield from _backward(trace)
    yield from _update(trace)


def _forward(trace: TracedStep) -> Iterator[Part]:
    yield from _heading("1. FORWARD", "z = w a + b with the a of the layer below;  a = sigma(z)")
    for i, layer in enumerate(trace.layers):
        (m, n), below = layer.weight_before.shape, trace.layers[i - 1]
        note = "" if i == 0 or input_is_output_of(layer, below) else "; its input is not the a of the layer before"
        yield from _layer(i + 1, layer, f": {n} -> {m}, {printable(layer.activation)}{note}")
        parameters = (("w", layer.weight_before), ("b", layer.bias_before))
        yield from _arrays(("input a", layer.inputs), *parameters, ("z", layer.z), ("a", layer.a), of_a=_idle(layer))


def _loss(trace: TracedStep) -> Iterator[Part]:
    last, formula, is_last = trace.layers[-1], formula_of([trace]), outputs_are_those_of(trace)
    yield from _heading("2. LOSS AND OUTPUT ERROR", "delta = dC/da * sigma'(z)")
    yield Line("")
    yield Line(f"  C = {displayed(trace.loss.item())}  ({printable(trace.loss_name)})")
    outputs, gradient = ("a", "dC/da") if is_last else ("outputs", "dC/d outputs")
    if formula:
        compared = "p" if formula.function else outputs
        twice = "" if formula.factor == 1 else f"{formula.factor} "
        count = f"{len(targets_as_rows(trace)) if formula.count == 'r' else trace.outputs.numel()}"
        where = f",  p = {formula.function.replace('σ', 'sigmoid')}({outputs})" if formula.function else ""
        yield Line(f"  {gradient} = {twice}({compared} - y) / {formula.count},  {formula.count} = {count}{where}")
    y: Tensor | None = trace.targets
    if are_class_indices(trace):
        y = one_hot = targets_as_rows(trace)
        yield Line("  y has a 1 at the class of each example")
        if not is_small(one_hot):
            yield Line(f"{INDENT}{classes('y', one_hot)}")
            y = None
    p = formula.prediction(per_example(trace.outputs, trace).double()) if formula and formula.function else None
    a = last.a if is_last else trace.outputs
    yield from _arrays(("y", y), (outputs, a), ("p", p), (gradient, trace.output_gradient))
    if is_last:
        yield from _arrays(*_error(last))


def _backward(trace: TracedStep) -> Iterator[Part]:
    yield from _heading(
        "3. BACKPROPAGATED ERROR AND GRADIENTS",
        "delta = (w^T delta of the layer above) * sigma'(z)",
        "dC/dw = delta a^T,  dC/db = delta, summed over the examples",
    )
    layers = trace.layers
    for i in reversed(range(len(layers))):
        layer, note = layers[i], ""
        if i + 1 < len(layers) and not error_comes_from(layer, layers[i + 1]):
            note = ": dC/da has come through more than the layer above"
        yield from _layer(i + 1, layer, note)
        if i + 1 < len(layers) or not outputs_are_those_of(trace):  # else it is the output error
            yield from _arrays(("dC/da", layer.cost_gradient), *_error(layer))
        yield from _arrays(("dC/dw", layer.grad_weight), ("dC/db", layer.grad_bias))


def _update(trace: TracedStep) -> Iterator[Part]:
    if trace.lr is not None and all(update_is_plain(layer, trace) for layer in trace.layers if layer.trained):
        rule = f"w := w - eta dC/dw,  b := b - eta dC/db,  eta = {trace.lr:.6g}"
    else:
        rule = f"w and b := what {trace.optimizer} makes of dC/dw and dC/db"
    yield from _heading("4. UPDATE", rule)
    for number, layer in enumerate(trace.layers, 1):
        if layer.call > 0:
            continue
        calls = len(calls_of(layer, trace))
        note = f": dC/dw and dC/db are sums over its {calls} calls" if calls > 1 else ""
        if not layer.trained:
            note = ": w stays (frozen, not the optimizer's, or without a gradient)"
        yield from _layer(number, layer, note)
        weight_gradient, bias_gradient = total_gradients(layer, trace)
        yield from _arrays(("w", layer.weight_before), ("dC/dw", weight_gradient), ("w after", layer.weight_after))
        yield from _arrays(("b", layer.bias_before), ("dC/db", bias_gradient), ("b after", layer.bias_after))


def _error(layer: TracedLayer) -> tuple[tuple[str, Tensor], ...]:
    return ("sigma'(z)", layer.derivative), ("delta", layer.delta)


def _heading(title: str, *equations: str) -> Iterator[Line]:
    yield Line("")
    yield Line(title, "bold cyan")
    yield from (Line(f"   {equation}", "italic") for equation in equations)


def _layer(number: int, layer: TracedLayer, note: str) -> Iterator[Line]:
    name = f"layer {number} named {printable(repr(layer.name))}" if layer.name else "the model itself"
    again = f", call {layer.call + 1}" if layer.call else ""
    yield Line("")
    yield Line(f"  {name}{again}{note}", "bold")


def _idle(layer: TracedLayer) -> str:
    if layer.activation == "identity":
        return ""
    try:
        sigma = activation_named(layer.activation.partition("(")[0])  # elu(0.3) is idle where elu is
    except ValueError:  # unpickled where nobody has defined it
        return ""
    return idle(layer.derivative, is_rectifying(sigma))


def _arrays(*named: tuple[str, Tensor | None], of_a: str = "") -> Iterator[Part]:
    """Small arrays whole, side by side; a line for each large one, and after that of a what else there is to say."""
    present = [(name, x) for name, x in named if x is not None]
    for small, group in groupby(present, key=lambda pair: is_small(pair[1])):
        if small:
            yield list(group)
            continue
        for name, x in group:
            yield Line(f"{INDENT}{summary(name, x)}{f', {of_a}' if of_a and name == 'a' else ''}")
