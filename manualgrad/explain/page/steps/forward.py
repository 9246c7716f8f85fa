"""Forward: z = w a + b, then a = sigma(z), one layer after the other."""

from __future__ import annotations

from manualgrad.explain.page import grids
from manualgrad.explain.page.drawing import Look, Shows, draw
from manualgrad.explain.page.mathml import number, operator, position, row, symbol
from manualgrad.explain.page.quantities import Quantities
from manualgrad.explain.page.steps.step import Step, written_sum
from manualgrad.explain.page.symbols import of_term
from manualgrad.explain.page.terms import Key, Term


def forward(q: Quantities, layer: int, name: str, activation: str) -> Step:
    below, (w, b, z, a) = q.input_term(layer), (Term(letter, layer) for letter in "wbza")
    has_bias = b in q
    sigma = symbol("σ", None, Term("s", layer))
    equations = [
        row(of_term(z), "=", of_term(w), of_term(below), *(("+", of_term(b)) if has_bias else ())),
        row(of_term(a), "=", sigma, "(", of_term(z), ")"),
    ]
    product = [
        grids.column(q, z, of_term(z, in_line=True)),
        "=",
        grids.matrix(q, w, of_term(w, in_line=True)),
        grids.column(q, below, of_term(below, in_line=True)),
        *(("+", grids.column(q, b, of_term(b, in_line=True))) if has_bias else ()),
    ]
    return Step(
        anchor=f"forward-{layer}",
        phase="Forward",
        short=str(layer),
        heading=f"Forward through layer {layer}",
        name=name,
        sentence=(
            "Each neuron adds up what comes in, each input times its weight"
            + (", plus its bias" if has_bias else "; this layer has no bias")
            + f". Then it applies its activation function, here σ = {activation}."
        ),
        equations=equations,
        matrices=[
            product,
            [
                grids.column(q, a, of_term(a, in_line=True)),
                "=",
                "σ (",
                grids.column(q, z, of_term(z, in_line=True)),
                ")",
            ],
        ],
        written=_written(q, layer, activation, has_bias),
        drawing=draw(q, _look(layer, below), layer),
        row=a,
        column=below,
        batch=[grids.batch(q, term, of_term(term, in_line=True)) for term in (below, z, a)],
        notes=_notes(q, layer),
    )


def _written(q: Quantities, layer: int, activation: str, has_bias: bool) -> list:
    below = q.drawn(q.input_term(layer))
    w, b, z, a = (q.drawn(Term(letter, layer)) for letter in "wbza")
    index = position(q, z, "@")
    count = q[w].columns.size
    terms = [
        (number(q, Key(w, "@", k), factor=k > 0), "·", number(q, Key(below, "*", k), factor=True))
        for k in range(q[w].columns.count)
    ]
    bias = [row("+", number(q, Key(b, 0, "@"), factor=True))] if has_bias else []
    return [
        [
            row(symbol("z", layer, Term("z", layer), index=index), "="),
            *written_sum(terms, count),
            *bias,
            row("=", number(q, Key(z, "*", "@"))),
        ],
        [
            row(symbol("a", layer, Term("a", layer), index=index), "="),
            row(operator(activation), "(", number(q, Key(z, "*", "@")), ")"),
            row("=", number(q, Key(a, "*", "@"))),
        ],
    ]


def _look(layer: int, below: Term) -> Look:
    def neurons(column: Term) -> Shows:
        if column == Term("a", layer):
            return Shows(column, active=True, minor=(("z", Term("z", layer)),))
        if column == below:
            return Shows(column, active=True)
        is_known = column.layer is not None and column.layer <= layer
        return Shows(column if is_known else None)

    return Look(
        neurons,
        weights=lambda j: Shows(Term("w", j), active=j == layer),
        biases=lambda j: Shows(Term("b", j), active=j == layer),
        caption="Circles: activations a. Lines: weights w.",
    )


def _notes(q: Quantities, layer: int) -> list[str]:
    if layer == 1:
        return [] if q.inputs_chained else ["The model changes its inputs before layer 1. a⁰ is what layer 1 received."]
    if q.input_term(layer).letter == "a":
        return []
    return [
        f"The input of layer {layer} is not the output of layer {layer - 1}: another part of the model, such as dropout, "
        f"normalisation or a reshape, stands between. It is written x and its numbers are what layer {layer} received."
    ]
