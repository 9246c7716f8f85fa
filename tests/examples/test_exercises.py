"""Exercises of the course: the solution is right, and what students write instead gets a sentence that names the mistake."""

import importlib
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.examples.wrong_answers import ANSWERS


COURSE = Path(__file__).parents[2] / "examples" / "course"


@pytest.fixture(scope="module")
def exercises() -> Iterator[Any]:
    sys.path.insert(0, str(COURSE))
    yield importlib.import_module("exercises")
    sys.path.remove(str(COURSE))


def answer(head: str, body: str) -> Callable[..., Any]:
    """The function that stands in a student's cell."""
    cell: dict[str, Any] = {}
    body = textwrap.indent(textwrap.dedent(body).strip(), "    ")
    exec(f"import torch\nfrom torch.nn import functional as F\ndef {head}:\n{body}", cell)
    return cell[name(head)]


def name(head: str) -> str:
    return head.partition("(")[0]


@pytest.mark.parametrize("head", ANSWERS, ids=name)
def test_each_mistake_is_named(exercises: Any, head: str) -> None:
    told = {body: str(exercises.check(answer(head, body))) for body in ANSWERS[head]}
    assert told == ANSWERS[head]
    assert len(told) >= 3


@pytest.mark.parametrize("head", ANSWERS, ids=name)
def test_the_solution_is_right_and_what_is_not_written_is_said(
    exercises: Any, head: str, capsys: pytest.CaptureFixture[str]
) -> None:
    exercises.solution(name(head))
    cell: dict[str, Any] = {}
    exec(
        f"from __future__ import annotations\nimport torch\nfrom torch.nn import functional as F\n{capsys.readouterr().out}",
        cell,
    )
    feedback = exercises.check(cell[name(head)])
    assert feedback.ok and str(feedback).startswith("Right: ")
    nothing = exercises.check(answer(head, "..."))
    assert not nothing.ok
    assert nothing == "Not written yet: the function returns nothing. Replace the ... by your code, with a return."


def test_every_exercise_is_tested(exercises: Any) -> None:
    assert [name(head) for head in ANSWERS] == [*exercises.EXERCISES]


@pytest.mark.parametrize(
    ("head", "body", "sentence"),
    [
        (
            "output_error(a, y, z)",
            "return 3 * (a - y) / len(a) * a * (1 - a)",
            "Not yet: delta is 3 times what it should be.",
        ),
        (
            "gradients(delta, a, w)",
            "return delta.T @ a, delta.sum(0), 2 * delta @ w",
            "Not yet: dC/da is 2 times what it should be.",
        ),
        (
            "gradients(delta, a, w)",
            "return delta.T @ a, delta.sum(0)",
            "Your function returns 2 tensors, expected 3: dC/dw, dC/db, dC/da.",
        ),
        (
            "layer(a, w, b)",
            "return (w @ a.T).T + c",
            "Your function stopped with NameError: name 'c' is not defined.",
        ),
        ("cost(a, y)", "return 'C'", "Your function returns a str, expected a tensor."),
        ("slope(cost, w, i, j, eps=1e-4)", "return 0.0", "Not yet: the numbers are not those of autograd."),
        (
            "tanh_slope(z)",
            "return 1 - z.tanh().sum() ** 2",
            "Your function stopped with ValueError: Activation 'yours' expected `derivative` to return a tensor of its argument's "
            "shape (5, 4), got a tensor of shape (). Compute it element by element; for a constant return "
            "torch.full_like(z, constant).",
        ),
    ],
)
def test_a_mistake_that_nobody_foresaw_gets_a_sentence_too(exercises: Any, head: str, body: str, sentence: str) -> None:
    assert exercises.check(answer(head, body)) == sentence


def test_a_function_of_another_name_is_refused(exercises: Any) -> None:
    with pytest.raises(
        KeyError, match="No exercise asks for a function named 'my_layer'. Keep the name that stands in the cell"
    ):
        exercises.check(answer("my_layer(a)", "return a"))
    with pytest.raises(KeyError, match="No exercise asks for a function named 'delta'."):
        exercises.solution("delta")


def test_feedback_is_a_box_in_a_notebook_and_a_sentence_elsewhere(exercises: Any) -> None:
    feedback = exercises.check(answer("tanh_slope(z)", "return 1 - z.tanh()"))
    assert repr(feedback) == "The square is missing: the slope is 1 - tanh(z)^2."
    assert feedback._repr_html_().endswith(
        'padding: 0.3em 0.8em">The square is missing: the slope is 1 - tanh(z)^2.</p>'
    )
