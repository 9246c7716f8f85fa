"""All steps of one training step, in order: forward, loss, errors backwards, gradients, updates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from manualgrad.explain import equations_that_hold as checks
from manualgrad.explain.loss_formulas import Formula, are_class_indices
from manualgrad.explain.page import grids
from manualgrad.explain.page.quantities import Quantities
from manualgrad.explain.page.steps.error import error
from manualgrad.explain.page.steps.forward import forward
from manualgrad.explain.page.steps.gradient import gradient
from manualgrad.explain.page.steps.loss import loss
from manualgrad.explain.page.steps.step import Step
from manualgrad.explain.page.steps.update import update
from manualgrad.explain.traced_step import TracedStep


def steps_of(
    traces: Sequence[TracedStep], q: Quantities, formula: Formula | None, image_shape: tuple[int, int] | None = None
) -> list[Step]:
    """The steps with the numbers of the first trace. An equation is shown as the text has it only where it holds in every trace."""
    first = traces[0]
    layers = list(enumerate(first.layers, start=1))

    steps = [replace(forward(q, i, layer.name, layer.activation), call=layer.call) for i, layer in layers]
    if image_shape and q.inputs_chained:
        steps[0] = replace(steps[0], picture=grids.picture(q, image_shape))
    steps.append(loss(q, first.loss_name, formula, has_classes=are_class_indices(first)))
    for i, layer in reversed(layers):
        steps.append(replace(error(q, i, layer.name, is_backpropagated=q.is_backpropagated[i - 1]), call=layer.call))
    for i, layer in layers:
        steps.append(replace(gradient(q, i, layer.name, calls=len(checks.calls_of(layer, first))), call=layer.call))
    for i, layer in layers:
        if layer.call == 0:
            is_plain = all(checks.update_is_plain(trace.layers[i - 1], trace) for trace in traces)
            steps.append(update(q, i, layer.name, first.optimizer, is_plain=is_plain, is_trained=layer.trained))
    return steps
