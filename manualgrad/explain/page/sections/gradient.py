"""The gradients dC/dw = delta a^T and dC/db = delta, summed over the batch."""

from manualgrad.explain.page import grids
from manualgrad.explain.page.drawing import Look, Shows, draw
from manualgrad.explain.page.mathml import identifier, row, sum_over, transposed
from manualgrad.explain.page.quantities import Quantities
from manualgrad.explain.page.sections.section import Line, Section, written_sum
from manualgrad.explain.page.symbols import number, of_term, position
from manualgrad.explain.page.terms import Term


def gradient(q: Quantities, layer: int, *, calls: int) -> Section:
    """`calls`: how often the layer is used in this training step."""
    below, (d, u, v) = q.input_term(layer), (Term(letter, layer) for letter in "duv")
    has_bias, rows, examples = v in q, q.largest_batch(layer), range(q.examples)
    over = (sum_over("i", number(q, Term("r", layer), 0, 0)),) if rows > 1 else ()
    example = identifier("i") if rows > 1 else None
    equations = [row(of_term(u), "=", *over, of_term(d, example), transposed(of_term(below, example)))]
    factors = [grids.batch(q, d, of_term(d), is_transposed=True), grids.batch(q, below, transposed(of_term(below)))]
    matrices: list[Line] = [[grids.matrix(q, u), "=", *factors, *(["+ ⋯"] if q.examples < rows else [])]]
    at = position(q, d, "@")
    errors = [number(q, d, i, "@", factor=i > 0) for i in examples]
    products = [(errors[i], "·", number(q, below, i, "%", factor=True)) for i in examples]
    entry = of_term(u, row(at, identifier(","), position(q, below, "%")), in_line=True)
    written = [[row(entry, "="), *written_sum(products, rows), row("=", number(q, u, "@", "%"))]]
    summed = ", summed over the examples of the batch." if rows > 1 else "."
    sentence = f"The gradient of a weight is the error at its upper end times the activation at its lower end{summed}"
    if has_bias:
        equations.append(row(of_term(v), "=", *over, of_term(d, example)))
        matrices.append([grids.column(q, v), "= the columns, added up, of" if rows > 1 else "=", of_term(d)])
        total = written_sum([(error,) for error in errors], rows)
        written.append([row(of_term(v, at, in_line=True), "="), *total, row("=", number(q, v, 0, "@"))])
        sentence += f" The gradient of a bias is the error itself{', summed likewise.' if rows > 1 else '.'}"
    return Section(
        "Gradient",
        layer,
        heading=f"Gradients of layer {layer}",
        sentence=sentence,
        equations=equations,
        matrices=matrices,
        written=written,
        drawing=draw(q, layer, _look(layer, below)),
        row=Term("a", layer),
        column=below,
        notes=_notes(q, rows, calls),
    )


def _look(layer: int, below: Term) -> Look:
    def neurons(column: Term) -> Shows:
        if column.letter == "a" and column.layer is not None and column.layer >= layer:
            return Shows(Term("d", column.layer), active=column.layer == layer)
        return Shows(Term("og") if column.letter == "o" else column, active=column == below)

    caption = f"Lines: gradients ∂C/∂w. Circles: errors δ from layer {layer} on, activations a before."
    return Look(neurons, caption, active=layer, parameters=lambda j: "uv")


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
