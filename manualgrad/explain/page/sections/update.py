"""Gradient descent: w := w - eta dC/dw, b := b - eta dC/db."""

from collections.abc import Callable
from dataclasses import replace

from manualgrad.explain.page import grids
from manualgrad.explain.page.drawing import Look, Shows, draw
from manualgrad.explain.page.mathml import Math, identifier, row
from manualgrad.explain.page.quantities import Quantities
from manualgrad.explain.page.sections.section import Line, Section
from manualgrad.explain.page.symbols import number, of_term, position
from manualgrad.explain.page.terms import ETA, Term


def update(q: Quantities, layer: int, optimizer: str, *, is_trained: bool) -> Section:
    """`is_trained`: the optimizer has this layer."""
    is_plain, below = q.update_is_plain[layer - 1], q.input_term(layer)
    at = position(q, Term("d", layer), "@")
    weight_gradient, bias_gradient = ("U", "V") if Term("U", layer) in q else ("u", "v")
    index = row(at, identifier(","), position(q, below, "%"))
    parameters: list[tuple[Callable[[Quantities, Term], grids.Grid], str, str, str, Math, tuple[int | str, str]]]
    parameters = [(grids.matrix, "w", weight_gradient, "W", index, ("@", "%"))]
    if Term("b", layer) in q:
        parameters.append((grids.column, "b", bias_gradient, "B", at, (0, "@")))
    equations, written = [], []
    matrices: list[Line] = []
    for grid, before, slope, after, place, entry in parameters:
        old, gradient, new = (Term(letter, layer) for letter in (before, slope, after))
        shown = [replace(grid(q, new), when="after"), replace(grid(q, old), when="before"), grid(q, gradient)]
        if is_plain:
            eta = row("−", number(q, ETA, 0, 0), "·")
            equations.append(row(of_term(new), "≔", of_term(old), "−", identifier("η"), of_term(gradient)))
            matrices.append([shown[0], "=", shown[1], eta, shown[2]])
            step = row("−", number(q, ETA, 0, 0), "·", number(q, gradient, *entry, factor=True))
            result = row("=", number(q, new, *entry))
            written.append([row(of_term(new, place), "≔"), number(q, old, *entry), step, result])
        else:
            equations.append(row(of_term(new), "←", of_term(old), ",", of_term(gradient)))
            matrices.append([shown[0], "←", shown[1], ",", shown[2]])
    look = Look(
        lambda column: Shows(None),
        "Lines: weights w after the step.",
        active=layer,
        parameters=lambda j: "WB" if j <= layer else "wb",
    )
    return Section(
        "Update",
        layer,
        heading=f"Update of layer {layer}",
        sentence=_sentence(optimizer, is_plain, is_trained),
        equations=equations,
        matrices=matrices,
        written=written,
        drawing=draw(q, layer, look),
        row=Term("a", layer),
        column=below,
    )


def _sentence(optimizer: str, is_plain: bool, is_trained: bool) -> str:
    if not is_trained:
        return f"{optimizer} leaves this weight as it is: it is frozen, belongs to another optimizer, or the cost does not see it."
    if is_plain:
        return f"A step downhill: every weight moves against its gradient, by the learning rate η times it. Taken by {optimizer}."
    return f"{optimizer} made the new weights from the old ones and the gradient; its rule is not w − η ∂C/∂w alone."
