"""Exercises that correct themselves.

    exercises.check(output_error)  # as the last line of a cell: a sentence on what is wrong and where to look
    exercises.solution("output_error")  # a solution, for those who ask

A function is known by its name. What it returns is put where a training step needs it, and `mg.check_backward` judges it
against autograd and finite differences. If it is wrong, it is compared with what typical mistakes give: the one that gives
the same numbers is named.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

import manualgrad as mg
from manualgrad.conformance.check_backward import CHECKS

from . import lesson_1, lesson_2, lesson_3, lesson_4, lesson_5, lesson_6, lesson_7
from .exercise import Exercise, Wrong


_LESSONS = (lesson_1, lesson_2, lesson_3, lesson_4, lesson_5, lesson_6, lesson_7)
EXERCISES = {exercise.solution.__name__: exercise for lesson in _LESSONS for exercise in lesson.EXERCISES}


class Feedback(str):
    """A sentence that a notebook shows in a box. `ok` says whether the function is right."""

    @property
    def ok(self) -> bool:
        return self.startswith("Right")

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        colour = "#009E73" if self.ok else "#E69F00"
        return f'<p style="border-left: 5px solid {colour}; padding: 0.3em 0.8em">{escape(self)}</p>'


def check(function: Callable[..., Any]) -> Feedback:
    """Say in a sentence what is wrong with the function and where to look, or that it is right.

    Raises:
        KeyError: no exercise asks for a function of that name.
    """
    exercise = _exercise(getattr(function, "__name__", repr(function)))
    theirs = _outcome(exercise, function)
    if isinstance(theirs, Wrong) and theirs.not_written:
        return Feedback(theirs)
    for sentence, mistake in exercise.mistakes.items():
        if _same(theirs, _outcome(exercise, mistake)):
            return Feedback(sentence)
    if isinstance(theirs, Exception):
        return Feedback(_stopped(theirs))
    return Feedback(_verdict(exercise, function) or f"Right: {exercise.right}")


def solution(name: str) -> None:
    """Print a solution of the exercise that asks for a function of this name. Raises KeyError as `check` does."""
    print(inspect.getsource(_exercise(name).solution), end="")


def _exercise(name: str) -> Exercise:
    if name not in EXERCISES:
        raise KeyError(
            f"No exercise asks for a function named {name!r}. Keep the name that stands in the cell; "
            f"the exercises are {', '.join(EXERCISES)}."
        )
    return EXERCISES[name]


def _outcome(exercise: Exercise, function: Callable[..., Any]) -> list[Tensor] | Exception:
    """What the function makes of the exercise's numbers: outputs and gradients, or the error that stops it."""
    layer = exercise.layer(function)
    leaves = [x.clone().requires_grad_(exercise.is_backward and x.is_floating_point()) for x in exercise.inputs]
    generator = torch.Generator().manual_seed(1)
    try:
        outputs = tree_leaves(layer(*leaves))
        if not exercise.is_backward:
            return outputs
        upstream = [torch.randn(x.shape, dtype=x.dtype, generator=generator) for x in outputs]
        return list(torch.autograd.grad(outputs, [x for x in leaves if x.requires_grad], upstream))
    except Exception as error:
        return error


def _verdict(exercise: Exercise, function: Callable[..., Any]) -> str:
    """What `check_backward` says is wrong, in the words of the exercise; "" if nothing."""
    if exercise.tolerance:
        found, expected = (_outcome(exercise, f) for f in (function, exercise.reference))
        return "" if _same(found, expected, exercise.tolerance) else "Not yet: the numbers are not those of autograd."
    checks = ("gradient", "gradcheck") if exercise.is_backward else ("output",)
    report = mg.check_backward(
        exercise.layer(function),
        exercise.reference,
        *exercise.inputs,
        skip=[name for name in CHECKS if name not in checks],
        only=("real", "2-d", "first order"),
    )
    if report.ok:
        return ""
    detail = next(iter(report.failed.values())).detail
    for i, name in enumerate(exercise.names):
        place = f"input[{i}]" if len(exercise.inputs) > 1 else "input"
        detail = detail.replace(f"the gradient by {place}", name).replace(f"output[{i}]", name)
    return f"Not yet: {detail.replace('the output', exercise.names[0])}."


def _stopped(error: Exception) -> str:
    if isinstance(error, Wrong):
        return str(error)
    advice = " Print the shape of each factor." if "cannot be multiplied" in str(error) else ""
    return f"Your function stopped with {type(error).__name__}: {str(error).splitlines()[0].rstrip('.')}.{advice}"


def _same(found: Sequence[Tensor] | Exception, other: Sequence[Tensor] | Exception, tolerance: float = 1e-9) -> bool:
    if isinstance(found, Exception) or isinstance(other, Exception):
        return isinstance(found, Exception) and isinstance(other, Exception) and str(found) == str(other)
    return len(found) == len(other) and all(
        (x.shape, x.is_complex()) == (y.shape, y.is_complex())
        and torch.allclose(x.double(), y.double(), rtol=tolerance, atol=tolerance)
        for x, y in zip(found, other, strict=True)
    )
