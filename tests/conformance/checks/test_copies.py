"""Modules that do not survive copying: check_backward catches and names them."""

import torch
from torch import nn
from torch.nn import functional as F

import manualgrad as mg
from manualgrad.conformance.check_backward import CHECKS
from tests.conformance.hand_written import Bug, expect_caught, one


class Uncopyable(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 4))

    def forward(self, x):
        return F.linear(x, self.weight)

    def __deepcopy__(self, memo):
        made = Uncopyable()
        nn.init.zeros_(made.weight)
        return made


class Undumpable(Uncopyable):
    """Its deepcopy is right; pickle calls what it should not."""

    def __deepcopy__(self, memo):
        made = Undumpable()
        made.load_state_dict(self.state_dict())
        return made

    def __getstate__(self):
        raise RuntimeError("no state")


def right() -> nn.Module:
    return nn.Linear(4, 3, bias=False)


def test_a_copy_that_is_another_module() -> None:
    expect_caught(Bug(Uncopyable(), "copies", "the deepcopy's output is .*", F.linear, one, right()))


def test_a_module_that_cannot_be_pickled() -> None:
    expect_caught(Bug(Undumpable(), "copies", "pickle: RuntimeError: no state", F.linear, one, right()))


def test_a_lambda_is_pickles_own_refusal() -> None:
    layer = nn.Linear(4, 3)
    layer.register_forward_hook(lambda module, inputs, output: output)
    (check,) = mg.check_backward(layer, F.linear, *one(), skip=CHECKS.keys() - {"copies"})
    assert check.status == "not supported" and "pickle" in check.detail
    (check,) = mg.check_backward(torch.sin, torch.sin, *one(), skip=CHECKS.keys() - {"copies"})
    assert (check.status, check.detail) == ("not applicable", "not a module")
