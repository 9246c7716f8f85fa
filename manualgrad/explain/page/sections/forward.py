"""Forward: z = w a + b, then a = sigma(z), one layer after the other."""

from manualgrad.explain.page import grids
from manualgrad.explain.page.drawing import Look, Shows, draw
from manualgrad.explain.page.mathml import operator, row
from manualgrad.explain.page.quantities import Quantities
from manualgrad.explain.page.sections.section import Line, Section, written_sum
from manualgrad.explain.page.symbols import number, of_term, position, symbol
from manualgrad.explain.page.terms import Term


def forward(q: Quantities, layer: int, activation: str) -> Section:
    below, (w, b, z, a) = q.input_term(layer), (Term(letter, layer) for letter in "wbza")
    has_bias = b in q
    sigma, at = symbol("σ", None, Term("s", layer)), position(q, z, "@")
    weights, weighted_sum = q[q.drawn(w)].columns, number(q, z, "*", "@")
    terms = [
        (number(q, w, "@", k, factor=k > 0), "·", number(q, below, "*", k, factor=True)) for k in range(weights.count)
    ]
    bias = [row("+", number(q, b, 0, "@", factor=True))] if has_bias else []
    product: Line = [grids.column(q, z), "=", grids.matrix(q, w), grids.column(q, below)]
    return Section(
        "Forward",
        layer,
        heading=f"Forward through layer {layer}",
        sentence=(
            "Each neuron adds up what comes in, each input times its weight"
            + (", plus its bias" if has_bias else "; this layer has no bias")
            + f". Then it applies its activation function, here σ = {activation}."
        ),
        equations=[
            row(of_term(z), "=", of_term(w), of_term(below), *(("+", of_term(b)) if has_bias else ())),
            row(of_term(a), "=", sigma, "(", of_term(z), ")"),
        ],
        matrices=[
            [*product, "+", grids.column(q, b)] if has_bias else product,
            [grids.column(q, a), "=", "σ (", grids.column(q, z), ")"],
        ],
        written=[
            [row(of_term(z, at), "="), *written_sum(terms, weights.size), *bias, row("=", weighted_sum)],
            [
                row(of_term(a, at), "="),
                row(operator(activation), "(", weighted_sum, ")"),
                row("=", number(q, a, "*", "@")),
            ],
        ],
        drawing=draw(q, layer, _look(layer, below)),
        row=a,
        column=below,
        batch=[grids.batch(q, term) for term in (below, z, a)],
        notes=_notes(q, layer),
    )


def _look(layer: int, below: Term) -> Look:
    def neurons(column: Term) -> Shows:
        if column == Term("a", layer):
            return Shows(column, active=True, minor=(("z", Term("z", layer)),))
        is_known = column == below or column.layer is not None and column.layer <= layer
        return Shows(column if is_known else None, active=column == below)

    return Look(neurons, "Circles: activations a. Lines: weights w.", active=layer)


def _notes(q: Quantities, layer: int) -> list[str]:
    if layer == 1:
        return [] if q.inputs_chained else ["The model changes its inputs before layer 1. a⁰ is what layer 1 received."]
    if q.input_term(layer).letter == "a":
        return []
    return [
        f"The input of layer {layer} is not the output of layer {layer - 1}: another part of the model, such as dropout, "
        f"normalisation or a reshape, stands between. It is written x and its numbers are what layer {layer} received."
    ]
