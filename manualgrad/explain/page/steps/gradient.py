"""The gradients dC/dw = delta a^T and dC/db = delta, summed over the batch."""

from __future__ import annotations

from manualgrad.explain.page import grids
from manualgrad.explain.page.drawing import Look, Shows, draw
from manualgrad.explain.page.mathml import Math, identifier, number, position, row, sum_over, transposed
from manualgrad.explain.page.quantities import Quantities
from manualgrad.explain.page.steps.step import Line, Step, written_sum
from manualgrad.explain.page.symbols import of_term
from manualgrad.explain.page.terms import Key, Term


def gradient(q: Quantities, layer: int, name: str, *, calls: int) -> Step:
    """`calls`: how often the layer is used in this training step."""
    below, (d, u, v) = q.input_term(layer), (Term(letter, layer) for letter in "duv")
    has_bias = v in q
    rows = q.largest_batch(layer)
    over = (sum_over("i", number(q, Key(Term("r", layer), 0, 0))),) if rows > 1 else ()
    example = identifier("i") if rows > 1 else None
    equations = [row(of_term(u), "=", *over, of_term(d, example), transposed(of_term(below, example)))]
    matrices: list[Line] = [
        [
            grids.matrix(q, u, of_term(u, in_line=True)),
            "=",
            grids.batch(q, d, of_term(d), transposed=True),
            grids.batch(q, below, transposed(of_term(below))),
            *(("+ ⋯",) if q.examples < rows else ()),
        ]
    ]
    if has_bias:
        equations.append(row(of_term(v), "=", *over, of_term(d, example)))
        matrices.append(
            [
                grids.column(q, v, of_term(v, in_line=True)),
                "= the columns, added up, of" if rows > 1 else "=",
                of_term(d),
            ]
        )
    return Step(
        anchor=f"gradient-{layer}",
        phase="Gradient",
        short=str(layer),
        heading=f"Gradients of layer {layer}",
        name=name,
        sentence=(
            "The gradient of a weight is the error at its upper end times the activation at its lower end"
            + (", summed over the examples of the batch." if rows > 1 else ".")
            + (
                " The gradient of a bias is the error itself" + (", summed likewise." if rows > 1 else ".")
                if has_bias
                else ""
            )
        ),
        equations=equations,
        matrices=matrices,
        written=_written(q, layer, rows, has_bias),
        drawing=draw(q, _look(layer, below), layer),
        row=Term("a", layer),
        column=below,
        notes=_notes(q, rows, calls),
    )


def _written(q: Quantities, layer: int, rows: int, has_bias: bool) -> list[list[Math]]:
    below = q.drawn(q.input_term(layer))
    d, u, v = (q.drawn(Term(letter, layer)) for letter in "duv")
    row_index, column_index = position(q, d, "@"), position(q, below, "%")
    both = row(row_index, identifier(","), column_index)
    examples = range(q.examples)
    products = [
        (number(q, Key(d, i, "@"), factor=i > 0), "·", number(q, Key(below, i, "%"), factor=True)) for i in examples
    ]
    lines = [
        [
            row(of_term(Term("u", layer), both, in_line=True), "="),
            *written_sum(products, rows),
            row("=", number(q, Key(u, "@", "%"))),
        ]
    ]
    if has_bias:
        errors = [(number(q, Key(d, i, "@"), factor=i > 0),) for i in examples]
        lines.append(
            [
                row(of_term(Term("v", layer), row_index, in_line=True), "="),
                *written_sum(errors, rows),
                row("=", number(q, Key(v, 0, "@"))),
            ]
        )
    return lines


def _look(layer: int, below: Term) -> Look:
    def neurons(column: Term) -> Shows:
        if column.letter == "a" and column.layer is not None and column.layer >= layer:
            return Shows(Term("d", column.layer), active=column.layer == layer)
        return Shows(Term("og") if column.letter == "o" else column, active=column == below)

    return Look(
        neurons,
        weights=lambda j: Shows(Term("u", j), active=j == layer),
        biases=lambda j: Shows(Term("v", j), active=j == layer),
        caption=f"Lines: gradients ∂C/∂w. Circles: errors δ from layer {layer} on, activations a before.",
    )


def _notes(q: Quantities, rows: int, calls: int) -> list[str]:
    notes = []
    if q.examples < rows:
        notes.append(
            f"The matrices on the right hold the first {q.examples} of {rows} examples; ∂C/∂w is the sum over all."
        )
    elif rows > 1:
        notes.append("Column i of δ times row i of aᵀ is the share of example i; the matrix product adds them up.")
    if calls > 1:
        notes.append(
            f"This layer is used {calls} times. This is the gradient of one call; the update takes the sum over all."
        )
    return notes
