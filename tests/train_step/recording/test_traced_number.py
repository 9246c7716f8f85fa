"""A number that was computed from stand-ins follows the options by its own formula."""

from __future__ import annotations

from typing import Any

import pytest

from manualgrad.train_step.recording.traced_number import NumberTracer, structure


FORMULAS: list[Any] = [
    lambda lr, momentum, decay: -lr,
    lambda lr, momentum, decay: 1 - lr * decay,
    lambda lr, momentum, decay: lr * momentum + 2,
    lambda lr, momentum, decay: (decay - momentum) / lr,
    lambda lr, momentum, decay: 3 / (1 + lr),
    lambda lr, momentum, decay: lr**2 - 2**momentum,
    lambda lr, momentum, decay: 1.0 * lr,
]


@pytest.mark.parametrize("formula", FORMULAS)
def test_arithmetic_is_remembered(formula: Any) -> None:
    tracer = NumberTracer()
    (stand_ins,) = tracer.options([(0.1, 0.9, 0.01)])
    traced = tracer.find(float(formula(*stand_ins)))  # a kernel is handed a plain float
    assert traced is not None
    for options in ((0.1, 0.9, 0.01), (0.2, 0.5, 0.3), (1, 1, 1)):
        assert traced([options]) == formula(*map(float, options))


def test_groups_are_told_apart_even_where_their_options_are_equal() -> None:
    tracer = NumberTracer()
    first, second = tracer.options([(0.1, 0.1), (0.1, 0.1)])
    stand_ins = [*first, *second]
    assert len(set(stand_ins)) == 4
    options = [(1.0, 2.0), (3.0, 4.0)]
    found = [tracer.find(float(number)) for number in stand_ins]
    assert [formula(options) for formula in found if formula] == [1.0, 2.0, 3.0, 4.0]


def test_zeros_flags_and_other_numbers_are_no_stand_ins() -> None:
    tracer = NumberTracer()
    assert tracer.options([(0, 0.0, True, False)]) == [(0, 0.0, True, False)]
    assert tracer.find(0.25) is None and tracer.find(1) is None and tracer.find("lr") is None


def test_structure_ignores_values_but_not_what_comes_or_goes() -> None:
    assert structure([(0.1, 0.9, False)]) == structure([(1, 0.5, False)])
    for other in ([(0.1, 0.0, False)], [(0.1, 0.9, True)], [(0.1, 0.9, False)] * 2):
        assert structure([(0.1, 0.9, False)]) != structure(other)
