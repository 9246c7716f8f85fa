"""Numbers that remember how they follow from an optimizer's options, so that a recording can follow a scheduler.

A recording fixes the numbers that its kernels are called with. Those that come from the options, such as -eta or
1 - eta * decay, have to change with them. So the update is recorded with stand-ins for the options: each is a float, and so
is what Python computes from them, but knows its formula. A stand-in's value is arbitrary and its own: kernels are handed
plain floats, and by its value a float is recognised.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any


Options = list[tuple]  # for each param group the values of its options
Formula = Callable[[Options], float]


class TracedNumber(float):
    """A stand-in, and the formula that gives its true value from the options."""

    formula: Formula
    tracer: NumberTracer

    def __neg__(self) -> TracedNumber:
        formula = self.formula
        return self.tracer.number(-float(self), lambda options: -formula(options))


def _method(operation: Callable[[Any, Any], Any], is_reversed: bool) -> Callable[[TracedNumber, Any], TracedNumber]:
    def method(number: TracedNumber, other: Any) -> TracedNumber:
        if not isinstance(other, (int, float)):
            return NotImplemented
        left, right = (other, number) if is_reversed else (number, other)
        f, g = _formula(left), _formula(right)
        value = operation(float(left), float(right))
        return number.tracer.number(value, lambda options: operation(f(options), g(options)))

    return method


for _name in ("add", "sub", "mul", "truediv", "pow"):
    setattr(TracedNumber, f"__{_name}__", _method(getattr(operator, _name), is_reversed=False))
    setattr(TracedNumber, f"__r{_name}__", _method(getattr(operator, _name), is_reversed=True))


def _formula(number: float) -> Formula:
    return number.formula if isinstance(number, TracedNumber) else lambda options: number


class NumberTracer:
    """Makes the stand-ins for a list of options, and knows every number that was computed from them."""

    def __init__(self) -> None:
        self._numbers: dict[float, TracedNumber] = {}

    def options(self, options: Options) -> Options:
        """The options with stand-ins for all numbers that are not 0, which a rule may treat as absent, and no tensors."""
        return [
            tuple(self._stand_in(x, i, j) if _varies(x) else x for j, x in enumerate(values))
            for i, values in enumerate(options)
        ]

    def _stand_in(self, x: float, i: int, j: int) -> TracedNumber:
        value = 0.5 + 0.1234567891 / (1 + len(self._numbers) + 0.61803398875 * j)  # below 1, as momentum is
        return self.number(value, lambda options: float(options[i][j]))

    def number(self, value: float, formula: Formula) -> TracedNumber:
        known = self._numbers.get(value)
        if known is not None:
            return known
        number = TracedNumber(value)
        number.formula, number.tracer = formula, self
        self._numbers[value] = number
        return number

    def find(self, value: Any) -> Formula | None:
        """The formula of a float that a kernel was called with; None for one that no option has a part in."""
        number = self._numbers.get(value) if type(value) is float else None
        return None if number is None else number.formula


def _varies(x: Any) -> bool:
    return isinstance(x, (int, float)) and not isinstance(x, bool) and x != 0


def structure(options: Options) -> Options:
    """What the kernels of an update depend on apart from its numbers: equal structures, equal kernels."""
    return [tuple(_varies(x) if not isinstance(x, bool) else x for x in values) for values in options]
