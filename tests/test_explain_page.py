"""What `write_page` writes and refuses: hostile names, odd models, odd numbers."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from explained import EITHER, XOR, data_of, opened, wide_traces, written, xor_net, xor_traces
from torch import Tensor, nn

import manualgrad as mg
from manualgrad.explain.page import write_page
from manualgrad.extras import MissingExtraError
from manualgrad.trace import trace


HOSTILE = "<script>alert(1)</script>"


def text_of(path: Path) -> str:
    """The page's own words, on one line."""
    page = re.sub(r"<(script|style).*?</\1>", " ", path.read_text(encoding="utf-8"), flags=re.S)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", page))


def quadratic(model: nn.Module, x: Tensor, y: Tensor, **options: Any) -> Any:
    return trace(model, mg.QuadraticLoss(), x, y, **options)


def test_one_file_that_asks_for_nothing(tmp_path: Path) -> None:
    page = written(tmp_path, xor_traces()).read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>")
    assert not re.search(r"https?:|//[a-z]|@import|url\(", page)
    assert "default-src 'none'" in page
    assert "{{" not in page and "{%" not in page


def test_the_trace_writes_it_too(tmp_path: Path) -> None:
    (one,) = xor_traces()
    one.to_html(tmp_path / "a.html", title="XOR")
    assert "<title>XOR</title>" in (tmp_path / "a.html").read_text(encoding="utf-8")
    assert (tmp_path / "a.html").read_bytes() == written(tmp_path, [one], title="XOR").read_bytes()


def hostile_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).abs().sum()


hostile_loss.__name__ = "</script><!--<script>\u2028alert(2)"


@pytest.mark.parametrize(
    "name", [HOSTILE, '"><img src=x onerror=alert(3)>', "{{ 7 * 7 }}", "\u202egnp", "\ud800", "a" * 300]
)
def test_names_are_never_markup(browser: Any, tmp_path: Path, name: str) -> None:
    model = nn.Sequential()
    model.add_module(name, mg.Dense(2, 3, activation="tanh", dtype=torch.float64))
    step = trace(model, hostile_loss, XOR, torch.zeros(4, 3, dtype=torch.float64))
    path = written(tmp_path, [step], title=f"</title>{name}")
    with opened(browser, path, width=360) as page:
        shown = name.replace("\ud800", "\ufffd")
        assert page.text_content("h1") == page.title() == f"</title>{shown}"
        assert page.text_content(".current h2 bdi") == shown
        assert page.evaluate("document.scripts.length") == 2
        assert page.evaluate("document.scrollingElement.scrollWidth") <= 360
        assert page.locator("img").count() == 0
        page.click('nav a[href="#loss"]')
        assert page.text_content(".current h2 bdi") == hostile_loss.__name__


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


def test_numbers_that_are_not_finite(browser: Any, tmp_path: Path) -> None:
    model = xor_net()
    with torch.no_grad():
        model[0].weight[0, 0] = float("nan")
        model[1].bias[0] = float("-inf")
    path = written(tmp_path, xor_traces(2, model))
    with opened(browser, path) as page:
        assert page.locator('.current td[data-k="w1:0:0"]').text_content() == "NaN"
        assert "nan" in page.get_attribute('.current td[data-k="w1:0:0"]', "class")
        assert page.locator('.current .number[data-k="w1:0:0"]').first.text_content() == "NaN"
        page.keyboard.press("ArrowRight")
        assert page.locator('.current td[data-k="b2:0:0"]').text_content() == "−∞"
        page.focus("#time")
        page.keyboard.press("ArrowRight")
        assert page.text_content("#cost") == "NaN"


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


def test_training_steps_far_apart(browser: Any, tmp_path: Path) -> None:
    path = written(tmp_path, xor_traces(3), steps=[0, 100, 3000])
    with opened(browser, path) as page:
        assert page.inner_text(".time label").startswith("Training step 0 of 3000, cost C = 0.1")
        page.focus("#time")
        page.keyboard.press("ArrowRight")
        assert page.text_content("#moment") == "100"


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


def test_a_run_of_a_wide_net_stays_small(tmp_path: Path) -> None:
    path = written(tmp_path, wide_traces() * 20)
    assert path.stat().st_size < 3_000_000


def test_without_jinja(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    sentence = (
        "The page expected the package `jinja2`, which is not installed. "
        'Install it with: python -m pip install "manualgrad[demo]"'
    )
    with pytest.raises(MissingExtraError, match=f"^{re.escape(sentence)}$"):
        write_page(xor_traces(), tmp_path / "page.html")


def test_what_it_refuses(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    with pytest.raises(
        ValueError, match=r"^write_page expected at least one trace, got none\. Make one with manualgrad\.trace"
    ):
        write_page([], path)
    other = quadratic(mg.MLP([2, 4, 1]), XOR.float(), EITHER.float())
    with pytest.raises(
        ValueError, match=r"^write_page expected traces of one model, got layers .* in number 2\. Write a page"
    ):
        write_page([*xor_traces(), other], path)
    empty = quadratic(mg.MLP([2, 1]), torch.zeros(0, 2), torch.zeros(0, 1))
    with pytest.raises(
        ValueError, match=r"^write_page expected at least one example, got z of shape \(0, 1\) in layer '0'\. Trace"
    ):
        write_page([empty], path)
    with pytest.raises(
        ValueError,
        match=r"^write_page expected `steps` to be 2 rising numbers, one for each trace, got \[3, 3\]\. Leave it out",
    ):
        write_page(xor_traces(2), path, steps=[3, 3])
    assert not path.exists()
