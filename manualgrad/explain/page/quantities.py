"""Every array that the page shows, as text: the first examples of a batch, large ones thinned, over all training steps.

Where the drawing shows only some of the neurons, their numbers are a quantity of their own.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from manualgrad.explain import which_equations_hold as checks
from manualgrad.explain.loss_formulas import per_example, targets_as_rows
from manualgrad.explain.number_format import displayed
from manualgrad.explain.page.terms import COST, ETA, PREDICTION, TARGETS, Key, Term
from manualgrad.explain.page.thinning import Axis, drawn_axis, whole_axis
from manualgrad.explain.traced_step import TracedStep, as_rows


LARGEST_BATCH = 8  # examples shown; of a larger batch the first ones
MOST_NUMBERS = 150_000  # that a page holds whole, if no axis is longer than
LONGEST_AXIS = 128
FEW_NUMBERS = 2_500  # of one training step: they stand in the page itself, which then needs no script


@dataclass(frozen=True)
class Quantity:
    """numbers[t][i][j] for training step t; rows are examples, or the neurons of a weight; the scale is the largest |number|."""

    term: Term
    rows: Axis
    columns: Axis
    numbers: list[list[list[str]]]
    scale: float


class Quantities(dict[Term, Quantity]):
    """All quantities by their terms, for a run of traces of one model."""

    def __init__(self, traces: Sequence[TracedStep], prediction: Callable[[Tensor], Tensor] | None = None) -> None:
        """`prediction`: the p that the output gradient compares with y, where that is not the outputs themselves."""
        super().__init__()
        depth = len(traces[0].layers)
        self.chained = [
            upper > 0 and all(checks.input_is_output_of(t.layers[upper], t.layers[upper - 1]) for t in traces)
            for upper in range(depth)
        ]
        self.is_backpropagated = [
            lower + 1 < depth and all(checks.error_comes_from(t.layers[lower], t.layers[lower + 1]) for t in traces)
            for lower in range(depth)
        ]
        self.update_is_plain = [
            all(checks.update_is_plain(trace.layers[i], trace) for trace in traces) for i in range(depth)
        ]
        self.inputs_chained = all(checks.inputs_are_those_of(trace) for trace in traces)
        self.outputs_chained = all(checks.outputs_are_those_of(trace) for trace in traces)
        batches = [dict(_batches(trace, self, prediction)) for trace in traces]
        parameters = [dict(_parameters(trace)) for trace in traces]
        examples = min(x.size(0) for batch in batches for x in batch.values())
        self.examples = min(LARGEST_BATCH, examples)
        tensors = [*batches[0].values(), *parameters[0].values()]
        count = sum(x.numel() for x in tensors)
        longest = max(size for x in tensors for size in x.shape)
        self.is_whole = count * len(traces) <= MOST_NUMBERS and longest <= LONGEST_AXIS
        self.is_small = count <= FEW_NUMBERS
        kept = examples if self.is_whole else self.examples
        for term in batches[0]:
            self._add(term, [batch[term][:kept] for batch in batches], whole_axis(kept), whole_axis(kept))
        for term in parameters[0]:
            size = parameters[0][term].size(0)
            self._add(term, [of_step[term] for of_step in parameters], self._axis(size), drawn_axis(size))
        for term, numbers in _single_numbers(traces).items():
            self[term] = _quantity(term, Axis(1), Axis(1), [*torch.tensor(numbers, dtype=torch.float64).view(-1, 1, 1)])
        for before, after in (("w", "W"), ("b", "B")):
            for term in [term for term in self if term.letter == before]:  # coloured alike before and after the step
                pair = [term, term._replace(letter=after)]
                scale = max(self[each].scale for each in pair)
                self.update({each: replace(self[each], scale=scale) for each in pair})

    def text(self, key: Key) -> str:
        """The entry `key`, of the first training step, the first example and the first neurons."""
        row, column = (place if isinstance(place, int) else 0 for place in key[1:])
        return self[key.term].numbers[0][row][column]

    def largest_batch(self, layer: int) -> int:
        """Most examples in a batch: the last one of a run may be smaller."""
        return max(int(x[0][0]) for x in self[Term("r", layer)].numbers)

    def input_term(self, layer: int) -> Term:
        """What goes into layer `layer`, counted from 1: the a of the layer below, unless something stands between."""
        return Term("a", layer - 1) if layer == 1 or self.chained[layer - 1] else Term("x", layer)

    def output_term(self) -> Term:
        return Term("a", len(self.chained)) if self.outputs_chained else Term("o")

    def output_gradient_term(self) -> Term:
        return Term("g", len(self.chained)) if self.outputs_chained else Term("og")

    def drawn(self, term: Term) -> Term:
        """The term of the numbers in the drawing."""
        of_drawing = term._replace(in_drawing=True)
        return of_drawing if of_drawing in self else term

    def _axis(self, size: int) -> Axis:
        return whole_axis(size) if self.is_whole else Axis(size)

    def _add(self, term: Term, tensors: list[Tensor], rows: Axis, drawn_rows: Axis) -> None:
        size = tensors[0].size(1)
        self[term] = _quantity(term, rows, self._axis(size), tensors)
        drawn_columns = drawn_axis(size)
        if drawn_rows.picked is not None or drawn_columns.picked is not None:
            self[term._replace(in_drawing=True)] = _quantity(term, drawn_rows, drawn_columns, tensors)


def _quantity(term: Term, rows: Axis, columns: Axis, tensors: Sequence[Tensor]) -> Quantity:
    shown = [columns.shown(rows.shown(x.double(), 0), 1).tolist() for x in tensors]
    finite = (abs(x) for matrix in shown for row in matrix for x in row if math.isfinite(x))
    numbers = [[[displayed(x) for x in row] for row in matrix] for matrix in shown]
    return Quantity(term, rows, columns, numbers, max(finite, default=0.0))


def _batches(
    trace: TracedStep, names: Quantities, prediction: Callable[[Tensor], Tensor] | None
) -> Iterator[tuple[Term, Tensor]]:
    """What every example has of its own: (r, n)."""
    for number, layer in enumerate(trace.layers, start=1):
        below = names.input_term(number)
        if number == 1 or below.letter == "x":
            yield below, as_rows(layer.inputs)
        of_layer = (layer.z, layer.a, layer.derivative, layer.cost_gradient, layer.delta)
        yield from ((Term(letter, number), as_rows(x)) for letter, x in zip("zasgd", of_layer, strict=True))
    if not names.outputs_chained:
        yield Term("o"), per_example(trace.outputs, trace)
        yield Term("og"), per_example(trace.output_gradient, trace)
    if prediction:
        yield PREDICTION, prediction(per_example(trace.outputs, trace).double())
    yield TARGETS, targets_as_rows(trace)


def _single_numbers(traces: Sequence[TracedStep]) -> dict[Term, list[float]]:
    numbers: dict[Term, list[float]] = {
        COST: [trace.loss.item() for trace in traces],
        Term("N"): [trace.outputs.numel() for trace in traces],
        Term("r"): [targets_as_rows(trace).size(0) for trace in traces],
    }
    for index in range(len(traces[0].layers)):
        numbers[Term("r", index + 1)] = [as_rows(trace.layers[index].delta).size(0) for trace in traces]
    rates = [trace.lr for trace in traces if trace.lr is not None]
    return {**numbers, ETA: rates} if len(rates) == len(traces) else numbers


def _parameters(trace: TracedStep) -> Iterator[tuple[Term, Tensor]]:
    """What the examples share: weights (m, n), biases (1, m)."""
    for number, layer in enumerate(trace.layers, start=1):
        for letter, matrix in (("w", layer.weight_before), ("u", layer.grad_weight), ("W", layer.weight_after)):
            yield Term(letter, number), matrix
        for letter, vector in (("b", layer.bias_before), ("v", layer.grad_bias), ("B", layer.bias_after)):
            if vector is not None:
                yield Term(letter, number), vector.unsqueeze(0)
        if len(checks.calls_of(layer, trace)) > 1:
            weight_gradient, bias_gradient = checks.total_gradients(layer, trace)
            yield Term("U", number), weight_gradient
            if bias_gradient is not None:
                yield Term("V", number), bias_gradient.unsqueeze(0)
