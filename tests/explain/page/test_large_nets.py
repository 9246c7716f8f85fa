"""Pages of deep and of wide nets: small files that open fast, with every number on demand; printing."""

from pathlib import Path
from typing import Any

import pytest
import torch

import manualgrad as mg
from manualgrad.explain.number_format import typeset
from tests.explain.explained import XOR, data_of, opened, quadratic, text_of, written, xor_traces


def traced(sizes: list[int], examples: int = 8) -> mg.Trace:
    return quadratic(mg.MLP(sizes, "tanh"), torch.rand(examples, sizes[0]), torch.rand(examples, sizes[-1]))


@pytest.fixture(scope="module")
def digits_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = mg.MLP([64, 30, 10], "relu")
    loss, classes = mg.SoftmaxCrossEntropyLoss(), torch.arange(32) % 10
    trace = mg.trace(model, loss, torch.rand(32, 1, 8, 8).flatten(1), classes)
    return written(tmp_path_factory.mktemp("digits"), [trace], image_shape=(8, 8), about="The data: noise.")


def test_a_page_of_eighty_layers_is_small_and_opens(browser: Any, tmp_path: Path) -> None:
    path = written(tmp_path, [traced([16] * 81)])
    assert path.stat().st_size < 5_000_000
    with opened(browser, path, at="#gradient-40") as page:
        numbers = data_of(path)["numbers"]["u40"][0]
        cells = page.locator('.current figure[data-t="u40"] td').all_text_contents()
        assert cells == [typeset(x) for row in numbers for x in row]
        assert page.locator(".current .weights.active line").count() == 64
        assert page.text_content("header .summary").startswith("Layers 16 → 16 → 16 → 16 → … (80 layers) → 16 → 16, ")


def test_the_digits_net_is_no_larger_than_it_was(digits_page: Path, tmp_path: Path) -> None:
    assert digits_page.stat().st_size < 300_000  # 1.1 MB once
    nine = mg.MLP([9, 3, 1], "sigmoid", "sigmoid")
    trace = quadratic(nine, torch.rand(6, 9), torch.rand(6, 1))
    assert (
        written(tmp_path, [trace], image_shape=(3, 3)).stat().st_size < 161_600
    )  # what it was before it had formulas and the image


def test_every_number_of_a_matrix_is_shown_on_demand(browser: Any, digits_page: Path) -> None:
    numbers = data_of(digits_page)["numbers"]["w1"][0]
    assert (len(numbers), len(numbers[0])) == (30, 64)  # all of them
    with opened(browser, digits_page) as page:
        table = page.locator('.current figure[data-t="w1"]')
        assert table.locator("td").all_text_contents() == [typeset(x) for row in numbers for x in row]
        assert table.locator("td").first.evaluate("e => getComputedStyle(e).fontSize") == "0px"
        table.locator("button.numbers").click()
        assert table.locator("td").first.evaluate("e => parseFloat(getComputedStyle(e).fontSize)") > 9
        page.set_viewport_size({"width": 360, "height": 900})
        assert page.evaluate("document.scrollingElement.scrollWidth") <= 360
        table.locator("button.numbers").click()
        assert table.locator("td").first.evaluate("e => getComputedStyle(e).fontSize") == "0px"


def test_images_are_shown_beside_the_numbers(browser: Any, digits_page: Path) -> None:
    pixels = data_of(digits_page)["numbers"]["a0"][0]
    assert "The data: noise." in text_of(digits_page)
    with opened(browser, digits_page) as page:
        picture = page.locator(".current .picture")
        assert picture.locator("tr").count() == 8
        assert picture.locator("td").all_text_contents() == [typeset(x) for x in pixels[0]]
        page.select_option("#example", label="3")
        assert picture.locator("td").all_text_contents() == [typeset(x) for x in pixels[2]]


def test_inputs_of_the_shape_of_images_are_images(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Flatten(), mg.Dense(6, 2))
    path = written(tmp_path, [quadratic(model, torch.rand(4, 1, 2, 3), torch.rand(4, 2))])
    assert 'class="grid picture"' in path.read_text(encoding="utf-8")


def pages_of(browser: Any, path: Path) -> int:
    with opened(browser, path) as page:
        return page.pdf(format="A4").count(b"/Type /Page\n")


def test_printing_gives_a_document_of_sensible_length(browser: Any, tmp_path: Path, digits_page: Path) -> None:
    assert 2 <= pages_of(browser, written(tmp_path, xor_traces())) <= 9  # nine steps
    assert pages_of(browser, digits_page) <= 3  # the open step
    deep = written(tmp_path, [quadratic(mg.MLP([2] * 13, "tanh"), XOR.float(), torch.ones(4, 2))])
    assert pages_of(browser, deep) <= 2
