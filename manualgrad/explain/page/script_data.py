"""What the page's script needs: the numbers of every training step, and which neurons their axes run over."""

from __future__ import annotations

from typing import Any

from manualgrad.explain.page.loss_curve import LossCurve
from manualgrad.explain.page.quantities import Quantities


def page_data(q: Quantities, curve: LossCurve) -> dict[str, Any]:
    """`axes` names, for a quantity's rows and columns, what a click on an entry chooses: "*" an example, "a1" a neuron of layer 1,
    None nothing, since the entry is a mean or is not in the drawing."""
    return {
        "numbers": {name: quantity.numbers for name, quantity in q.items()},
        "scales": {name: quantity.scale for name, quantity in q.items()},
        "labels": {name: [quantity.rows.labels, quantity.columns.labels] for name, quantity in q.items()},
        "axes": {name: _axes(q, name) for name in q},
        "points": curve.points,
        "steps": curve.steps,
        "examples": q.examples,
    }


def _axes(q: Quantities, name: str) -> list[str | None]:
    term = name.rstrip("~")
    if q.drawn(term) != name or term in ("C", "N", "eta") or term[0] == "r":
        return [None, None]
    letter = term[0]
    if letter in "wuWU":
        layer = int(term[1:])
        return [f"a{layer}", q.input_term(layer)]
    if letter in "bvBV":
        return [None, f"a{term[1:]}"]
    if term in ("y", "p", "o", "og"):
        return ["*", q.output_term()]
    return ["*", term if letter in "ax" else f"a{term[1:]}"]
