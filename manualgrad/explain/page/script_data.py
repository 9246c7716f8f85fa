"""What the page's script needs: the numbers of every training step, how each was computed, and what a click on it chooses."""

from collections.abc import Sequence
from typing import Any

from manualgrad.explain.loss_formulas import Formula
from manualgrad.explain.page.loss_curve import LossCurve
from manualgrad.explain.page.quantities import Quantities
from manualgrad.explain.page.terms import PREDICTION, Term
from manualgrad.explain.printable import printable
from manualgrad.explain.traced_step import TracedStep


def page_data(traces: Sequence[TracedStep], q: Quantities, formula: Formula | None, curve: LossCurve) -> dict[str, Any]:
    """`numbers` has a string for each row; `labels` only the axes that are not 1, 2, 3, ...

    `axes` names, for a quantity's rows and columns, what a click on an entry chooses: "*" an example, "a1" a neuron of layer 1,
    None nothing, since the entry is a mean or is not in the drawing.
    """
    return {
        "numbers": {str(term): [[" ".join(row) for row in rows] for rows in x.numbers] for term, x in q.items()},
        "scales": {str(term): quantity.scale for term, quantity in q.items()},
        "labels": {
            str(term): [None if axis.is_whole else axis.labels for axis in (x.rows, x.columns)]
            for term, x in q.items()
            if not (x.rows.is_whole and x.columns.is_whole)
        },
        "sizes": {str(term): [x.rows.size, x.columns.size] for term, x in q.items()},
        "axes": {str(term): [name and str(name) for name in _axes(q, term)] for term in q},
        "layers": [_layer(traces[0], q, number) for number in range(1, len(q.chained) + 1)],
        "loss": _loss(q, formula),
        "isWhole": q.is_whole,
        "points": curve.points,
        "steps": curve.steps,
        "examples": q.examples,
    }


def _layer(trace: TracedStep, q: Quantities, number: int) -> dict[str, Any]:
    """Which of the equations hold for a layer."""
    layer = trace.layers[number - 1]
    return {
        "below": str(q.input_term(number)),
        "sigma": printable(layer.activation),
        "isBackpropagated": q.is_backpropagated[number - 1],
        "isPlain": q.update_is_plain[number - 1],
        "calls": [i for i, other in enumerate(trace.layers, 1) if other.name == layer.name],
    }


def _loss(q: Quantities, formula: Formula | None) -> dict[str, Any] | None:
    if formula is None:
        return None
    a = q.output_term()
    return {
        "name": formula.name,
        "a": str(a),
        "p": str(PREDICTION if PREDICTION in q else a),
        "gradient": str(q.output_gradient_term()),
        "factor": formula.factor,
        "count": formula.count,
    }


def _axes(q: Quantities, term: Term) -> tuple[Term | str | None, Term | None]:
    drawn, of_layer = term._replace(in_drawing=False), Term("a", term.layer)
    if q.drawn(drawn) != term or term.is_single_number:
        return None, None
    if term.is_weight:
        assert term.layer is not None
        return of_layer, q.input_term(term.layer)
    if term.is_bias:
        return None, of_layer
    if term.layer is None:
        return "*", q.output_term()
    return "*", drawn if term.letter in "ax" else of_layer
