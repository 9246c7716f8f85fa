"""Gradient descent: w := w - eta dC/dw, b := b - eta dC/db."""

from __future__ import annotations

from dataclasses import replace

from manualgrad.explain.page import grids
from manualgrad.explain.page.drawing import Look, Shows, draw
from manualgrad.explain.page.mathml import Math, identifier, number, position, row
from manualgrad.explain.page.quantities import Quantities
from manualgrad.explain.page.steps.step import Line, Step
from manualgrad.explain.page.symbols import of_term
from manualgrad.explain.page.terms import ETA, Key, Term


def update(q: Quantities, layer: int, name: str, optimizer: str, *, is_plain: bool, is_trained: bool) -> Step:
    """`is_plain`: the new parameters are w - eta dC/dw. `is_trained`: the optimizer has this layer."""
    weight_gradient, bias_gradient = ("U", "V") if Term("U", layer) in q else ("u", "v")
    letters = [("w", weight_gradient, "W"), *([("b", bias_gradient, "B")] if Term("b", layer) in q else [])]
    equations, written = [], []
    matrices: list[Line] = []
    for before, slope, after in letters:
        old, gradient, new = (Term(letter, layer) for letter in (before, slope, after))
        show = grids.matrix if before == "w" else grids.column
        new_grid = replace(show(q, new, of_term(new)), when="after")
        old_grid = replace(show(q, old, of_term(old)), when="before")
        gradient_grid = show(q, gradient, of_term(gradient, in_line=True))
        if is_plain:
            equations.append(row(of_term(new), "≔", of_term(old), "−", identifier("η"), of_term(gradient)))
            eta = row("−", number(q, Key(ETA, 0, 0)), "·")
            matrices.append([new_grid, "=", old_grid, eta, gradient_grid])
            written.append(_written(q, layer, before, slope, after))
        else:
            equations.append(row(of_term(new), "←", of_term(old), ",", of_term(gradient)))
            matrices.append([new_grid, "←", old_grid, ",", gradient_grid])
    return Step(
        anchor=f"update-{layer}",
        phase="Update",
        short=str(layer),
        heading=f"Update of layer {layer}",
        name=name,
        sentence=_sentence(optimizer, is_plain, is_trained),
        equations=equations,
        matrices=matrices,
        written=written,
        drawing=draw(q, _look(layer), layer),
        row=Term("a", layer),
        column=q.input_term(layer),
    )


def _sentence(optimizer: str, is_plain: bool, is_trained: bool) -> str:
    if not is_trained:
        return f"{optimizer} leaves this weight as it is: it is frozen, belongs to another optimizer, or the cost does not see it."
    if is_plain:
        return f"A step downhill: every weight moves against its gradient, by the learning rate η times it. Taken by {optimizer}."
    return f"{optimizer} made the new weights from the old ones and the gradient; its rule is not w − η ∂C/∂w alone."


def _written(q: Quantities, layer: int, before: str, slope: str, after: str) -> list[Math]:
    old, gradient, new = (q.drawn(Term(letter, layer)) for letter in (before, slope, after))
    d, below = q.drawn(Term("d", layer)), q.drawn(q.input_term(layer))
    is_weight = before == "w"
    row_index = position(q, d, "@")
    index = row(row_index, identifier(","), position(q, below, "%")) if is_weight else row_index
    entry = ("@", "%") if is_weight else (0, "@")
    return [
        row(of_term(Term(after, layer), index), "≔"),
        number(q, Key(old, *entry)),
        row("−", number(q, Key(ETA, 0, 0)), "·", number(q, Key(gradient, *entry), factor=True)),
        row("=", number(q, Key(new, *entry))),
    ]


def _look(layer: int) -> Look:
    def shows(new: str, old: str, j: int) -> Shows:
        return Shows(Term(new if j <= layer else old, j), active=j == layer)

    return Look(
        neurons=lambda column: Shows(None),
        weights=lambda j: shows("W", "w", j),
        biases=lambda j: shows("B", "b", j),
        caption="Lines: weights w after the step.",
    )
