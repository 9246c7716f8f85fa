"""The error delta = dC/dz: of the output layer, then backpropagated layer by layer."""

from __future__ import annotations

from manualgrad.explain.page import grids
from manualgrad.explain.page.drawing import Look, Shows, draw
from manualgrad.explain.page.mathml import Math, number, position, row, symbol, transposed
from manualgrad.explain.page.quantities import Quantities
from manualgrad.explain.page.steps.step import Line, Step, written_sum
from manualgrad.explain.page.symbols import of_term
from manualgrad.explain.page.terms import Key, Term


def error(q: Quantities, layer: int, name: str, *, is_backpropagated: bool) -> Step:
    """`is_backpropagated`: dC/da of this layer is w^T delta of the next. Otherwise it is taken from the trace as it is."""
    g, s, d = (Term(letter, layer) for letter in "gsd")
    w_above, d_above = Term("w", layer + 1), Term("d", layer + 1)
    depth = len(q.chained)
    source: list[Math | str] = [of_term(g)]
    matrices: list[Line] = []
    if is_backpropagated:
        source = ["(", transposed(of_term(w_above)), of_term(d_above), ")"]
        matrices.append(
            [
                grids.column(q, g, of_term(g, in_line=True)),
                "=",
                grids.matrix(q, w_above, transposed(of_term(w_above)), transposed=True),
                grids.column(q, d_above, of_term(d_above, in_line=True)),
            ]
        )
    matrices.append(
        [
            grids.column(q, d, of_term(d, in_line=True)),
            "=",
            grids.column(q, g, of_term(g, in_line=True)),
            "⊙",
            grids.column(q, s, of_term(s, in_line=True)),
        ]
    )
    return Step(
        anchor=f"error-{layer}",
        phase="Error",
        short=str(layer),
        heading=f"Error of layer {layer}",
        name=name,
        sentence=_sentence(layer, depth, is_backpropagated),
        equations=[row(of_term(d), "=", *source, "⊙", of_term(s))],
        matrices=matrices,
        written=[_written(q, layer, is_backpropagated)],
        drawing=draw(q, _look(layer), layer),
        row=Term("a", layer),
        batch=[grids.batch(q, term, of_term(term, in_line=True)) for term in (g, s, d)],
        notes=_notes(q, layer, is_backpropagated),
    )


def _sentence(layer: int, depth: int, is_backpropagated: bool) -> str:
    end = "times the slope σ′(z) of its activation function, entry by entry (⊙)."
    if is_backpropagated:
        return (
            f"The error δ = ∂C/∂z of a neuron: the errors of layer {layer + 1}, carried back along the same weights "
            f"that carried a forward, {end}"
        )
    start = "The error δ = ∂C/∂z of each output neuron" if layer == depth else "The error δ = ∂C/∂z of each neuron"
    return f"{start}: how the cost changes with its a, {end}"


def _written(q: Quantities, layer: int, is_backpropagated: bool) -> list[Math]:
    g, s, d = (q.drawn(Term(letter, layer)) for letter in "gsd")
    index = position(q, d, "@")
    parts = [row(symbol("δ", layer, Term("d", layer), index=index), "=")]
    if is_backpropagated:
        w, d_above = q.drawn(Term("w", layer + 1)), q.drawn(Term("d", layer + 1))
        terms = [
            (number(q, Key(w, j, "@"), factor=j > 0), "·", number(q, Key(d_above, "*", j), factor=True))
            for j in range(q[w].rows.count)
        ]
        total = written_sum(terms, q[w].rows.size)
        total[0] = row("(", total[0])
        total[-1] = row(total[-1], ")")
        parts += [*total, row("·", number(q, Key(s, "*", "@"), factor=True), "=")]
    product = row(number(q, Key(g, "*", "@")), "·", number(q, Key(s, "*", "@"), factor=True))
    return [*parts, product, row("=", number(q, Key(d, "*", "@")))]


def _look(layer: int) -> Look:
    def neurons(column: Term) -> Shows:
        if column.letter != "a" or column.layer is None or column.layer < layer:
            return Shows(Term("og") if column.letter == "o" else column)
        if column.layer > layer:
            return Shows(Term("d", column.layer), active=column.layer == layer + 1)
        return Shows(Term("d", layer), active=True, minor=(("∂C/∂a", Term("g", layer)), ("σ′", Term("s", layer))))

    return Look(
        neurons,
        weights=lambda j: Shows(Term("w", j), active=j == layer + 1),
        biases=lambda j: Shows(Term("b", j)),
        caption=f"Circles: errors δ from layer {layer} on, activations a before. Lines: weights w.",
    )


def _notes(q: Quantities, layer: int, is_backpropagated: bool) -> list[str]:
    notes = []
    if layer == len(q.chained):
        notes.append("C is a mean over the batch: the 1/r is in ∂C/∂a, and so in every δ and gradient from here on.")
    if not is_backpropagated and layer < len(q.chained):
        notes.append(
            f"Layer {layer} does not feed layer {layer + 1} alone and directly, so (w)ᵀδ of layer {layer + 1} is not its ∂C/∂a. "
            "What is shown is the ∂C/∂a that arrived through the parts between."
        )
    return notes
