"""The page of odd models: what it says where an equation of the text does not hold as it stands."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import manualgrad as mg
from manualgrad.tracing.trace import trace
from tests.explain.explained import EITHER, XOR, data_of, opened, quadratic, text_of, written, xor_net


def test_a_layer_without_bias(tmp_path: Path) -> None:
    path = written(tmp_path, [quadratic(mg.MLP([2, 3], bias=False), XOR.float(), torch.ones(4, 3))])
    assert "this layer has no bias" in text_of(path)
    assert "b1" not in data_of(path)["numbers"] and "∂ b" not in text_of(path)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_every_precision(tmp_path: Path, dtype: torch.dtype) -> None:
    model = mg.MLP([2, 3, 1], "sigmoid", dtype=dtype)
    path = written(tmp_path, [quadratic(model, XOR.to(dtype), EITHER.to(dtype))])
    text = text_of(path)
    assert "δ 1 = ( ( w 2 ) T δ 2 )" in text  # the equations hold in this precision too
    assert "A step downhill" in text and "its rule is not" not in text


class Odd(nn.Module):
    """A layer used twice, dropout between, a residual connection, sequences."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = mg.Dense(4, 4, activation="tanh")
        self.drop = nn.Dropout(0.5)
        self.out = mg.Dense(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.twice(x)
        return self.out(self.drop(x + self.twice(h))).softmax(-1)


def test_parts_that_are_not_dense(browser: Any, tmp_path: Path) -> None:
    model = Odd()
    optimizer = mg.GradientDescent(model.parameters(), lr=0.1, factored=False)
    step = quadratic(model, torch.randn(5, 7, 4), torch.rand(5, 7, 2), optimizer=optimizer)
    path = written(tmp_path, [step])
    text = text_of(path)
    assert "The input of layer 3 is not the output of layer 2" in text
    assert "Layer 2 does not feed layer 3 alone and directly" in text
    assert "Between the last Dense layer and the loss stands another part of the model." in text
    assert "This layer is used 2 times. This is the gradient of one call; the update takes the sum over all." in text
    assert "Error of layer 2 named twice , call 2" in text
    assert "A step downhill" in text and "its rule is not" not in text
    assert "The matrices on the right hold the first 8 of 35 examples" in text
    assert (
        path.read_text(encoding="utf-8").count('class="step" id="update-') == 2
    )  # of the layer used twice there is one update
    with opened(browser, path, width=360) as page:
        for _ in range(12):
            assert page.evaluate("document.scrollingElement.scrollWidth") <= 360
            page.keyboard.press("ArrowRight")


def test_an_optimizer_with_another_rule(tmp_path: Path) -> None:
    model = xor_net()
    adam = torch.optim.Adam(model.parameters(), lr=0.01)
    text = text_of(written(tmp_path, [quadratic(model, XOR, EITHER, optimizer=adam)]))
    assert "made the new weights from the old ones and the gradient; its rule is not w − η ∂C/∂w alone." in text
    assert "A step downhill" not in text


def test_a_frozen_layer(tmp_path: Path) -> None:
    model = xor_net()
    model[0].requires_grad_(False)
    optimizer = mg.GradientDescent(model[1].parameters(), lr=0.5)
    text = text_of(written(tmp_path, [quadratic(model, XOR, EITHER, optimizer=optimizer)]))
    assert text.count("leaves this weight as it is") == 1


@pytest.mark.parametrize(
    ("loss", "targets", "formula"),
    [
        (mg.QuadraticLoss(), torch.rand(6, 3), "1 2 r"),
        (nn.MSELoss(), torch.rand(6, 3), "1 N"),
        (mg.SoftmaxCrossEntropyLoss(), torch.tensor([0, 1, 2, 0, 1, 2]), "softmax"),
        (nn.CrossEntropyLoss(), torch.rand(6, 3).softmax(1), "softmax"),
        (nn.BCEWithLogitsLoss(), torch.rand(6, 3), "∂ a 1 = p − y N"),
        (nn.MSELoss(reduction="sum"), torch.rand(6, 3), None),
        (nn.CrossEntropyLoss(), torch.tensor([0, 1, -100, 0, 1, 2]), None),
        (nn.L1Loss(), torch.rand(6, 3), None),
    ],
)
def test_a_formula_is_shown_where_it_gives_the_numbers(
    tmp_path: Path, loss: nn.Module, targets: Tensor, formula: str | None
) -> None:
    text = text_of(written(tmp_path, [trace(mg.MLP([4, 3]), loss, torch.randn(6, 4), targets)]))
    if formula is None:
        assert "No formula that the page knows gives this loss." in text
    else:
        assert formula in text and "No formula" not in text


def test_one_example_without_a_batch(tmp_path: Path) -> None:
    text = text_of(written(tmp_path, [quadratic(mg.MLP([2, 3]), XOR[1].float(), torch.ones(3))]))
    assert "1 example," in text and "summed over" not in text


def test_the_last_batch_of_a_run_may_be_smaller(browser: Any, tmp_path: Path) -> None:
    model = xor_net()
    path = written(tmp_path, [quadratic(model, XOR, EITHER), quadratic(model, XOR[:3], EITHER[:3])])
    assert "a batch of 3 to 4 examples" in text_of(path)
    with opened(browser, path, at="#gradient-1") as page:
        assert page.text_content(".current .equations .number >> nth=0") == "4"
        page.focus("#time")
        page.keyboard.press("ArrowRight")
        assert page.text_content(".current .equations .number >> nth=0") == "3"


def count_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.sum(1) - targets).square().mean()


def test_targets_of_another_shape_than_the_outputs(tmp_path: Path) -> None:
    text = text_of(written(tmp_path, [trace(mg.MLP([2, 3]), count_loss, XOR.float(), torch.rand(4))]))
    assert "count_loss" in text and "No formula that the page knows gives this loss." in text


def test_inputs_that_the_model_changes_first(tmp_path: Path) -> None:
    said = "The model changes its inputs before layer 1. a⁰ is what layer 1 received."
    flat, scaled = nn.Flatten(), nn.BatchNorm1d(4)
    images = torch.rand(5, 2, 2)
    assert said not in text_of(
        written(tmp_path, [quadratic(nn.Sequential(flat, mg.Dense(4, 1)), images, torch.rand(5, 1))])
    )
    model = nn.Sequential(flat, scaled, mg.Dense(4, 1))
    assert said in text_of(written(tmp_path, [quadratic(model, images, torch.rand(5, 1))]))


def test_a_deep_net_is_drawn_in_part(tmp_path: Path) -> None:
    text = text_of(written(tmp_path, [quadratic(mg.MLP([2] * 13, "tanh"), XOR.float(), torch.ones(4, 2))]))
    assert "Layers 1 to 4 of 12 are drawn." in text and "Layers 9 to 12 of 12 are drawn." in text
