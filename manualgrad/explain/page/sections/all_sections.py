"""The sections of the page in order: forward, loss, errors backwards, gradients, updates."""

from collections.abc import Sequence
from dataclasses import replace

from manualgrad.explain.loss_formulas import Formula, are_class_indices
from manualgrad.explain.page import grids
from manualgrad.explain.page.quantities import Quantities
from manualgrad.explain.page.sections.error import error
from manualgrad.explain.page.sections.forward import forward
from manualgrad.explain.page.sections.gradient import gradient
from manualgrad.explain.page.sections.loss import loss
from manualgrad.explain.page.sections.section import Section
from manualgrad.explain.page.sections.update import update
from manualgrad.explain.traced_step import TracedStep
from manualgrad.explain.which_equations_hold import calls_of


def sections_of(
    traces: Sequence[TracedStep], q: Quantities, formula: Formula | None, image_shape: tuple[int, int] | None
) -> list[Section]:
    """With the numbers of the first trace. An equation is shown as the text has it only where it holds in every trace."""
    first = traces[0]
    layers = list(enumerate(first.layers, start=1))
    of_layers = [
        *((forward(q, i, layer.activation), layer) for i, layer in layers),
        *((error(q, i), layer) for i, layer in reversed(layers)),
        *((gradient(q, i, calls=len(calls_of(layer, first))), layer) for i, layer in layers),
        *((update(q, i, first.optimizer, is_trained=layer.trained), layer) for i, layer in layers if layer.call == 0),
    ]
    sections = [replace(section, name=layer.name, call=layer.call) for section, layer in of_layers]
    if image_shape and q.inputs_chained:
        sections[0] = replace(sections[0], picture=grids.picture(q, image_shape))
    of_loss = loss(q, first.loss_name, formula, has_classes=are_class_indices(first))
    return [*sections[: len(layers)], of_loss, *sections[len(layers) :]]
