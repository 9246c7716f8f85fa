"""The error delta = dC/dz: of the output layer, then backpropagated layer by layer."""

from manualgrad.explain.page import grids
from manualgrad.explain.page.drawing import Look, Shows, draw
from manualgrad.explain.page.mathml import Math, row, transposed
from manualgrad.explain.page.quantities import Quantities
from manualgrad.explain.page.sections.section import Line, Section, written_sum
from manualgrad.explain.page.symbols import number, of_term, position
from manualgrad.explain.page.terms import Term


def error(q: Quantities, layer: int) -> Section:
    """dC/da of the layer is w^T delta of the next where that holds. Otherwise it is taken from the trace as it is."""
    g, s, d = (Term(letter, layer) for letter in "gsd")
    w_above, d_above = Term("w", layer + 1), Term("d", layer + 1)
    is_backpropagated, slope = q.is_backpropagated[layer - 1], number(q, s, "*", "@", factor=True)
    source: list[Math | str] = [of_term(g)]
    matrices: list[Line] = [[grids.column(q, d), "=", grids.column(q, g), "⊙", grids.column(q, s)]]
    written = [row(of_term(d, position(q, d, "@")), "=")]
    if is_backpropagated:
        weight = transposed(of_term(w_above))
        source = ["(", weight, of_term(d_above), ")"]
        carried_back = [grids.matrix(q, w_above, weight, is_transposed=True), grids.column(q, d_above)]
        matrices.insert(0, [grids.column(q, g), "=", *carried_back])
        above = q[q.drawn(w_above)].rows
        terms = [
            (number(q, w_above, j, "@", factor=j > 0), "·", number(q, d_above, "*", j, factor=True))
            for j in range(above.count)
        ]
        total = written_sum(terms, above.size)
        total[0] = row("(", total[0])
        total[-1] = row(total[-1], ")")
        written += [*total, row("·", slope, "=")]
    return Section(
        "Error",
        layer,
        heading=f"Error of layer {layer}",
        sentence=_sentence(layer, len(q.chained), is_backpropagated),
        equations=[row(of_term(d), "=", *source, "⊙", of_term(s))],
        matrices=matrices,
        written=[[*written, row(number(q, g, "*", "@"), "·", slope), row("=", number(q, d, "*", "@"))]],
        drawing=draw(q, layer, _look(layer)),
        row=Term("a", layer),
        batch=[grids.batch(q, term) for term in (g, s, d)],
        notes=_notes(q, layer, is_backpropagated),
    )


def _sentence(layer: int, depth: int, is_backpropagated: bool) -> str:
    end = "times the slope σ′(z) of its activation function, entry by entry (⊙)."
    if is_backpropagated:
        return (
            f"The error δ = ∂C/∂z of a neuron: the errors of layer {layer + 1}, carried back along the same weights "
            f"that carried a forward, {end}"
        )
    which = "each output neuron" if layer == depth else "each neuron"
    return f"The error δ = ∂C/∂z of {which}: how the cost changes with its a, {end}"


def _look(layer: int) -> Look:
    def neurons(column: Term) -> Shows:
        if column.letter != "a" or column.layer is None or column.layer < layer:
            return Shows(Term("og") if column.letter == "o" else column)
        if column.layer > layer:
            return Shows(Term("d", column.layer), active=column.layer == layer + 1)
        return Shows(Term("d", layer), active=True, minor=(("∂C/∂a", Term("g", layer)), ("σ′", Term("s", layer))))

    caption = f"Circles: errors δ from layer {layer} on, activations a before. Lines: weights w."
    return Look(neurons, caption, active=layer + 1)


def _notes(q: Quantities, layer: int, is_backpropagated: bool) -> list[str]:
    if layer == len(q.chained):
        return ["C is a mean over the batch: the 1/r is in ∂C/∂a, and so in every δ and gradient from here on."]
    if is_backpropagated:
        return []
    return [
        f"Layer {layer} does not feed layer {layer + 1} alone and directly, so (w)ᵀδ of layer {layer + 1} is not its ∂C/∂a. "
        "What is shown is the ∂C/∂a that arrived through the parts between."
    ]
