"""Mistakes that show only in a certain state, or in what the layer leaves behind."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import manualgrad as mg
from manualgrad.conformance.check_backward import CHECKS


class WrongForABatchOfOne(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.rows = len(x)
        return 3 * x

    @staticmethod
    def backward(ctx, delta):
        return delta if ctx.rows == 1 else 3 * delta


def wrong_without_gradients(x: Tensor) -> Tensor:
    return 3 * x if torch.is_grad_enabled() else 4 * x


def draws(x: Tensor) -> Tensor:
    torch.rand(1)
    return 3 * x


def sets_dtype(x: Tensor) -> Tensor:
    torch.set_default_dtype(torch.float64)
    return 3 * x


def sets_threads(x: Tensor) -> Tensor:
    torch.set_num_threads(torch.get_num_threads() + 1)
    return 3 * x


def switches_gradients_off(x: Tensor) -> Tensor:
    y = 3 * x
    torch.set_grad_enabled(False)
    return y


def slightly_off(x: Tensor) -> Tensor:
    return 3.0003 * x


BUGS = [
    (
        WrongForABatchOfOne,
        "batch of one",
        "with a batch of one, the gradient by input is 0.3333 times what it should be",
    ),
    (wrong_without_gradients, "no_grad", "under no_grad, the output is 1.333 times what it should be"),
    (draws, "surroundings", "it draws random numbers, the reference does not: whatever is drawn after it differs"),
    (sets_dtype, "surroundings", "a call changes the default dtype"),
    (sets_threads, "surroundings", "a call changes the number of threads"),
    (switches_gradients_off, "surroundings", "a call changes the grad mode"),
    (slightly_off, "output", "the output is wrong by 1.0e-04 of its largest entry"),
]


@pytest.mark.parametrize("layer, check, sentence", BUGS)
def test_a_planted_bug_is_caught_and_named(layer, check, sentence):
    found = mg.check_backward(layer, lambda x: 3 * x, torch.randn(4, 3), skip=CHECKS.keys() - {check})
    assert found.failed[check].detail == sentence
    assert torch.get_default_dtype() == torch.float32 and torch.is_grad_enabled()


def test_a_changed_setting_does_not_hide_behind_the_checks_before():
    found = mg.check_backward(sets_dtype, lambda x: 3 * x, torch.randn(4, 3), skip=("torch.compile",))
    assert found.failed["surroundings"].detail == "a call changes the default dtype"
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize("layer", [nn.Dropout(), nn.Embedding(6, 3, sparse=True)], ids=["dropout", "sparse embedding"])
def test_no_false_alarm(layer):
    given = torch.tensor([1, 2, 2]) if isinstance(layer, nn.Embedding) else torch.randn(3, 4)
    mg.check_backward(layer, layer, given, skip=("torch.compile",)).assert_ok(require=("no_grad", "surroundings"))


def test_a_batch_of_one_that_the_reference_refuses():
    norm = nn.BatchNorm1d(3)
    found = mg.check_backward(norm, norm, torch.randn(4, 3), skip=CHECKS.keys() - {"batch of one"})
    assert found[0].status == "not applicable"


def test_linear_does_all_three():
    given = torch.randn(5, 3), torch.randn(4, 3), torch.randn(4)
    names = ("batch of one", "no_grad", "surroundings")
    mg.check_backward(mg.dense, F.linear, *given, skip=CHECKS.keys() - set(names)).assert_ok(require=names)
