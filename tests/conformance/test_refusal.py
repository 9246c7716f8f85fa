"""A refusal is said on purpose; anything else is a layer that breaks."""

import pytest
import torch

from manualgrad.conformance.refusal import is_refusal


def by_raise():
    raise ValueError("expected a matrix")


def by_assert():
    assert not torch.ones(1), "expected a matrix"


def chained():
    try:
        torch.ones(2, 3, 4).t()
    except RuntimeError as error:
        raise RuntimeError("expected a matrix") from error


def handed_on():
    try:
        torch.ones(2, 3, 4).t()
    except RuntimeError:
        raise


def backward():
    raise ValueError("expected a matrix")


@pytest.mark.parametrize("refuses", [by_raise, by_assert, chained, lambda: torch.clamp(torch.ones(1) * 1j, min=0)])
def test_said_on_purpose(refuses):
    with pytest.raises(Exception) as error:
        refuses()
    assert is_refusal(error.value)


@pytest.mark.parametrize(
    "breaks",
    [lambda: torch.ones(2, 3, 4).t(), lambda: torch.ones(1)[3], lambda: 1 / 0, handed_on, backward],
)
def test_not_on_purpose(breaks):
    with pytest.raises(Exception) as error:
        breaks()
    assert not is_refusal(error.value)
