"""The formula of every entry, read off the page and evaluated, against the numbers of the trace."""

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import manualgrad as mg
from tests.explain.explained import EITHER, XOR, opened, written, xor_net


# A click on every entry of every step shows it with its formula and all terms.
READ_ALL = """() => {
    const found = {};
    for (let step = 0; step < document.querySelectorAll("section.step").length; step++) {
        for (const element of document.querySelectorAll(".current [data-k]")) {
            element.dispatchEvent(new MouseEvent("click", { bubbles: true }));
            const lines = [...document.querySelectorAll("#entry div div")].map((line) => line.textContent);
            found[document.querySelector("#entry p").textContent] = lines;
        }
        document.getElementById("next").click();
    }
    return found;
}"""
FUNCTIONS = {
    "log": math.log,
    "exp": math.exp,
    "sigmoid": lambda z: 1 / (1 + math.exp(-z)),
    "sigmoid_": lambda z: math.exp(-z) / (1 + math.exp(-z)) ** 2,
    "tanh": math.tanh,
    "tanh_": lambda z: 1 - math.tanh(z) ** 2,
    "relu": lambda z: max(z, 0.0),
    "relu_": lambda z: float(z > 0),
    "identity": lambda z: z,
    "identity_": lambda z: 1.0,
}


def python_of(formula: str) -> str:
    formula = formula.removeprefix("= ").replace("−", "-").replace("·", "*").replace("′", "_").replace("²", "**2")
    return re.sub(r"log (\S+)", r"log(\1)", formula)


def magnitude_of(formula: str) -> float:
    """The same with every term positive: what four digits of each can make wrong."""
    positive = re.sub(r"(?<![e\d])-(?=[\d.])", "", python_of(formula))
    return abs(eval(re.sub(r"(?<=[\d)]) - ", " + ", positive), {}, FUNCTIONS)) if "log" not in formula else math.inf


def nets() -> list[Any]:
    torch.manual_seed(0)
    xor, nine, classes = xor_net(), mg.MLP([9, 3, 1], "tanh", "sigmoid"), mg.MLP([5, 12, 4], "relu")
    x = torch.rand(6, 5)
    return [
        (xor, mg.QuadraticLoss(), XOR, EITHER),
        (nine, nn.MSELoss(), torch.rand(6, 9), torch.rand(6, 1)),
        (classes, mg.SoftmaxCrossEntropyLoss(), x, torch.tensor([0, 1, 2, 3, 0, 1])),
        (mg.MLP([5, 3], "relu"), mg.BinaryCrossEntropyLoss(), x, torch.rand(6, 3)),
    ]


NAMES = {"z": "z", "a": "a", "δ": "delta", "σ′": "derivative", "∂C/∂a": "cost_gradient"}
SHARED = {"∂C/∂w": "grad_weight", "∂C/∂b": "grad_bias", "new w": "weight_after", "new b": "bias_after"}


def traced_value(trace: mg.Trace, name: str) -> float | None:
    """The number that "δ¹ [2] of example 3" names, from the trace; None for what is given."""
    if name == "C":
        return trace.loss.item()
    found = re.fullmatch(r"(\D+?)([⁰¹²³]?) \[(\d+)(?:, (\d+))?\](?: of example (\d+))?", name)
    assert found, name
    letter, superscript, *places = found.groups()
    i, j, example = (int(place) - 1 if place else 0 for place in places)
    number = "⁰¹²³".index(superscript) if superscript else 0
    if letter == "p":
        function = torch.sigmoid if isinstance(trace.targets, Tensor) and trace.targets.is_floating_point() else None
        outputs = trace.outputs.double()
        return (function(outputs) if function else outputs.softmax(1))[example, i].item()
    if number == 0 or letter in ("w", "b", "y"):
        return None
    layer = trace.layers[number - 1]
    if letter in NAMES:
        return getattr(layer, NAMES[letter])[example, i].item()
    x = getattr(layer, SHARED[letter])
    return (x[i, j] if x.dim() == 2 else x[i]).item()


@pytest.mark.parametrize("net", range(4), ids=["xor", "9-3-1", "classes", "binary"])
def test_every_formula_gives_the_number(browser: Any, tmp_path: Path, net: int) -> None:
    model, loss, x, y = nets()[net]
    trace = mg.trace(model, loss, x, y, mg.GradientDescent(model.parameters(), lr=0.5, factored=False))
    with opened(browser, written(tmp_path, [trace])) as page:
        found = page.evaluate(READ_ALL)
    evaluated = set()
    for what, lines in found.items():
        name = what.partition(" = ")[0]
        if name in ("r", "N", "η"):
            continue
        value = traced_value(trace, name)
        assert (value is None) == (lines == []), what
        if value is None:
            continue
        assert "⋯" not in lines[1], what
        result, size = eval(python_of(lines[1]), {}, FUNCTIONS), magnitude_of(lines[1])
        tolerance = 3e-3 * min(size, 1 + abs(value)) if math.isinf(size) else 3e-3 * size
        assert result == pytest.approx(value, abs=tolerance + 1e-9), (what, lines)
        evaluated.add(name)
    letters = {re.split(r"[⁰¹²³ ]", name)[0] if not name.startswith("new") else name[:5] for name in evaluated}
    assert letters >= {"C", "z", "a", "δ", "σ′", "∂C/∂a", "∂C/∂w", "∂C/∂b", "new w", "new b"}
    shared = sum(p.numel() for p in model.parameters())
    per_example = sum(layer.z.numel() for layer in trace.layers)
    assert len(evaluated) >= 2 * shared + 5 * per_example + 1


def test_a_label_says_the_formula_with_its_first_terms(browser: Any, tmp_path: Path) -> None:
    model = mg.MLP([9, 3, 1], "sigmoid", "sigmoid")
    trace = mg.trace(model, mg.QuadraticLoss(), torch.rand(6, 9), torch.rand(6, 1))
    with opened(browser, written(tmp_path, [trace])) as page:
        page.hover('.current td[data-k="z1:*:1"]')
        lines = page.locator("#tip div").all_text_contents()
        assert lines[0] == "= ∑ₖ w¹[2,k] · a⁰[k] + b¹[2]"
        assert lines[1].count("·") == 3 and " + ⋯ + " in lines[1]
        assert lines[2] == "9 terms: click to see all"
        page.click('.current td[data-k="z1:*:1"]')
        assert page.locator("#entry div div").nth(1).text_content().count("·") == 9
        page.keyboard.press("Escape")
        assert not page.locator("#entry").is_visible()


def test_where_the_page_does_not_hold_all_terms_it_says_so(browser: Any, tmp_path: Path) -> None:
    trace = mg.trace(mg.MLP([784, 20, 3]), mg.QuadraticLoss(), torch.rand(12, 784), torch.rand(12, 3))
    with opened(browser, written(tmp_path, [trace])) as page:
        page.hover('.current td[data-k="w1:1:1"]')
        assert page.text_content("#tip").startswith("mean of w¹ [2, 26–50] = ")
        page.click('nav a[href="#gradient-1"]')
        page.locator('.current line[data-k="u1~:0:0"]').dispatch_event("click")
        assert " + ⋯" in page.text_content("#entry")
        assert "The page does not hold the other terms" in page.text_content("#entry")
