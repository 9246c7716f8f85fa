"""All steps of one training step, in order: forward, loss, errors backwards, gradients, updates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from manualgrad.explain import equation_checks as checks
from manualgrad.explain.loss_formulas import formula_of
from manualgrad.explain.quantities import Quantities, are_class_indices
from manualgrad.explain.steps.error import error
from manualgrad.explain.steps.forward import forward
from manualgrad.explain.steps.gradient import gradient
from manualgrad.explain.steps.loss import loss
from manualgrad.explain.steps.step import Step
from manualgrad.explain.steps.update import update


if TYPE_CHECKING:
    from manualgrad.trace import Trace


def steps_of(traces: Sequence[Trace], q: Quantities) -> list[Step]:
    """The steps with the numbers of the first trace. An equation is shown as the text has it only where it holds in every trace."""
    first = traces[0]
    layers = list(enumerate(first.layers, start=1))
    depth = len(layers)
    rows = [checks.as_rows(layer.delta).size(0) for layer in first.layers]

    def everywhere(holds, *indices: int) -> bool:
        return all(holds(*(trace.layers[index] for index in indices)) for trace in traces)

    steps = [forward(q, i, layer.name, layer.activation) for i, layer in layers]
    steps.append(loss(q, first.loss_name, formula_of(traces), rows[-1], has_classes=are_class_indices(first)))
    for i, layer in reversed(layers):
        is_backpropagated = i < depth and everywhere(checks.error_comes_from, i - 1, i)
        steps.append(error(q, i, layer.name, is_backpropagated=is_backpropagated))
    for i, layer in layers:
        is_product = everywhere(checks.gradient_is_outer_product, i - 1)
        steps.append(gradient(q, i, layer.name, rows[i - 1], is_product=is_product))
    for i, layer in layers:
        is_plain = all(checks.update_is_plain(trace.layers[i - 1], trace.lr) for trace in traces)
        steps.append(update(q, i, layer.name, first.optimizer, is_plain=is_plain))
    return steps
