"""Verdicts on gradients that are zero, or nearly: judged by their terms, never by noise against noise."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import manualgrad as mg
from manualgrad import equations
from manualgrad.comparison.result import Row


def batch_norm() -> nn.Sequential:
    return nn.Sequential(mg.Dense(8, 16), nn.BatchNorm1d(16), nn.ReLU(), mg.Dense(16, 3))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [2, 5, 32, 64])
def test_a_bias_before_a_batch_norm_is_zero_up_to_rounding(dtype: torch.dtype, rows: int) -> None:
    model, x = batch_norm().to(dtype), torch.randn(rows, 8, dtype=dtype)
    comparison = mg.compare(model, nn.CrossEntropyLoss(), x, torch.randint(3, (rows,)))
    assert comparison.ok, str(comparison)
    bias = comparison.rows[1]
    assert (bias.name, bias.zero_up_to_rounding) == ("0.bias", True)
    assert max(bias.relative_error, bias.error_by_hand, bias.error_by_autograd) <= 8 * torch.finfo(dtype).eps
    line = next(line for line in str(comparison).splitlines() if line.startswith("0.bias "))
    assert line.endswith("zero up to rounding")


class Attention(nn.Module):
    """The gradient by the bias of the keys is zero: softmax does not see what all scores of a row share."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = mg.Dense(6, 8), mg.Dense(6, 8), mg.Dense(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x)).mean(1)


ZERO = {
    "instance norm": (nn.Sequential(mg.Dense(6, 8), nn.InstanceNorm1d(5), mg.Dense(8, 3)), (3, 5, 6), []),
    "group norm": (nn.Sequential(mg.Dense(6, 8), nn.GroupNorm(8, 8), mg.Dense(8, 3)), (9, 6), ["0.weight", "0.bias"]),
    "attention": (Attention(), (4, 5, 6), ["k.bias"]),
    "softmax of one class": (nn.Sequential(mg.Dense(6, 1), nn.Softmax(-1)), (9, 6), []),
}


@pytest.mark.parametrize("model, shape, zero", ZERO.values(), ids=ZERO.keys())
def test_other_gradients_that_are_zero(model: nn.Module, shape: tuple[int, ...], zero: list[str]) -> None:
    for seed in range(5):
        torch.manual_seed(seed)
        x = torch.randn(shape)
        comparison = mg.compare(model, nn.MSELoss(), x, torch.randn_like(model(x)))
        assert comparison.ok, str(comparison)
        assert {*zero} <= {row.name for row in comparison.rows if row.zero_up_to_rounding}, str(comparison)


def one_entry_off(right: Callable[..., Tensor], choose: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    def wrong(*arguments: Tensor) -> Tensor:
        found = right(*arguments).clone()
        found.view(-1)[choose(found.abs().flatten())] *= 1.001
        return found

    return wrong


@pytest.mark.parametrize("equation", ["weight_gradient", "bias_gradient", "backpropagated_error"])
@pytest.mark.parametrize(
    "choose", [torch.argmax, lambda x: (x - x.mean()).abs().argmin(), lambda x: (x - x.mean() / 20).abs().argmin()]
)
def test_a_factor_of_1001_in_one_entry_is_found(equation, choose, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(equations, equation, one_entry_off(getattr(equations, equation), choose))
    for model in (batch_norm(), mg.MLP([8, *[24] * 6, 3], "gelu")):
        comparison = mg.compare(model, nn.CrossEntropyLoss(), torch.randn(16, 8), torch.randint(3, (16,)))
        assert not comparison.ok, str(comparison)


def test_rounding_hides_no_bug_beside_a_zero_row() -> None:
    wrong = mg.Activation("wrong", value=torch.tanh, derivative=lambda z: 1.001 * (1 - torch.tanh(z) ** 2))
    model = nn.Sequential(mg.Dense(8, 16), nn.BatchNorm1d(16), mg.Dense(16, 16, activation=wrong), mg.Dense(16, 3))
    comparison = mg.compare(model, nn.MSELoss(), torch.randn(32, 8), torch.randn(32, 3))
    assert [row.name for row in comparison.rows if not row.ok] == [
        "0.weight",
        "1.weight",
        "1.bias",
        "2.weight",
        "2.bias",
        "input",
    ]
    assert comparison.rows[1].zero_up_to_rounding


class ZeroByHand(mg.QuadraticLoss):
    """Cancels where autograd does not: 0 in place of a gradient of 1e-9."""

    def gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return torch.zeros_like(outputs)


def test_a_confident_net_is_judged_by_what_cancels() -> None:
    z = torch.full((1, 1), 17.5)  # sigmoid(z) - 1 is -2.5e-8, less than float32 shows beside 1
    model = mg.Dense(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(1.0)

    class Cancels(mg.BinaryCrossEntropyLoss):
        def gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
            return torch.sigmoid(outputs) - targets

    comparison = mg.compare(model, Cancels(), z, torch.ones(1, 1))
    assert comparison.ok and all(row.zero_up_to_rounding for row in comparison.rows), str(comparison)


def test_zero_by_hand_is_wrong_where_float32_shows_a_gradient() -> None:
    comparison = mg.compare(mg.MLP([3, 2]), ZeroByHand(), torch.randn(5, 3), torch.randn(5, 2))
    assert [row.ok for row in comparison.rows] == [False] * 3


def test_a_verdict_is_the_same_every_time() -> None:
    model, x, y = batch_norm(), torch.randn(32, 8), torch.randint(3, (32,))
    assert mg.compare(model, nn.CrossEntropyLoss(), x, y) == mg.compare(model, nn.CrossEntropyLoss(), x, y)


# Truth values, and what could not be judged


def test_truth_values_follow_ok() -> None:
    row = Row("w", (1,), 0.0, 0.0, 0.0, 0.0, True)
    assert mg.Comparison((row,), 0.1, 0.1)
    assert not mg.Comparison((row,), 0.1, 0.1, anything_by_hand=False)
    assert not mg.Comparison((Row("w", (1,), 1.0, 1.0, 1.0, 0.0, False),), 0.1, 0.1)


class OwnState(nn.Module):
    """A cell that makes its state itself, in float32, before a batch norm."""

    def __init__(self, cast: bool) -> None:
        super().__init__()
        self.cast, self.a, self.b, self.head = cast, mg.Dense(4, 6), mg.Dense(6, 6), mg.Dense(6, 2)
        self.norm = nn.BatchNorm1d(6)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x.float()).float() if self.cast else torch.zeros(len(x), 6)
        for _ in range(3):
            h = torch.tanh(self.norm(self.a(x) + self.b(h)))
        return self.head(h)


@pytest.mark.parametrize("cast", [False, True])
def test_without_a_float64_truth_the_column_is_empty(cast: bool) -> None:
    comparison = mg.compare(OwnState(cast), nn.MSELoss(), torch.randn(9, 4), torch.randn(9, 2))
    assert comparison.ok, str(comparison)
    assert (
        "No float64 truth, by hand is compared with autograd alone: the model does not run in float64 (RuntimeError: "
        in " ".join(str(comparison).split())
    )
    row = next(line.split() for line in str(comparison).splitlines() if line.startswith("a.weight"))
    assert row[4:6] == ["-", "-"]
    wrong = mg.Activation("wrong", value=torch.tanh, derivative=lambda z: 1.001 * (1 - torch.tanh(z) ** 2))
    model = OwnState(cast)
    model.a.activation = wrong
    assert not mg.compare(model, nn.MSELoss(), torch.randn(9, 4), torch.randn(9, 2)).ok
