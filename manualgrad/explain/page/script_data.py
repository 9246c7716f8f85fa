"""What the page's script needs: the numbers of every training step, and which neurons their axes run over."""

from __future__ import annotations

from typing import Any

from manualgrad.explain.page.loss_curve import LossCurve
from manualgrad.explain.page.quantities import Quantities
from manualgrad.explain.page.terms import Term


def page_data(q: Quantities, curve: LossCurve) -> dict[str, Any]:
    """`axes` names, for a quantity's rows and columns, what a click on an entry chooses: "*" an example, "a1" a neuron of layer 1,
    None nothing, since the entry is a mean or is not in the drawing."""
    return {
        "numbers": {str(term): quantity.numbers for term, quantity in q.items()},
        "scales": {str(term): quantity.scale for term, quantity in q.items()},
        "labels": {str(term): [quantity.rows.labels, quantity.columns.labels] for term, quantity in q.items()},
        "axes": {str(term): [name and str(name) for name in _axes(q, term)] for term in q},
        "points": curve.points,
        "steps": curve.steps,
        "examples": q.examples,
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
