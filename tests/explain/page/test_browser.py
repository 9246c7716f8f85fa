"""The page in a real browser: it opens alone, can be walked by mouse and by key, and can be read by everyone."""

from pathlib import Path
from typing import Any

import pytest
import torch

from manualgrad.explain.number_format import typeset
from tests.explain.explained import data_of, opened, wide_traces, written, xor_net, xor_traces


ANCHORS = [
    "forward-1",
    "forward-2",
    "loss",
    "error-2",
    "error-1",
    "gradient-1",
    "gradient-2",
    "update-1",
    "update-2",
]


@pytest.fixture(scope="module")
def xor_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("xor"), xor_traces())


@pytest.fixture(scope="module")
def wide_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("wide"), wide_traces())


def visible(page: Any) -> list[str]:
    return page.evaluate(
        "[...document.querySelectorAll('section.step')].filter(s => s.checkVisibility()).map(s => s.id)"
    )


def test_next_and_back_visit_every_step(browser: Any, xor_page: Path) -> None:
    with opened(browser, xor_page) as page:
        seen = [visible(page)]
        for _ in ANCHORS[1:]:
            page.click("#next")
            seen.append(visible(page))
        assert seen == [[anchor] for anchor in ANCHORS]
        assert page.locator("#next").is_disabled()
        assert page.text_content("#where") == "9 of 9"
        page.click("#back")
        assert visible(page) == ["update-1"]


def test_the_arrow_keys_visit_every_step(browser: Any, xor_page: Path) -> None:
    with opened(browser, xor_page) as page:
        seen = [visible(page)]
        for _ in ANCHORS:  # once more than there are steps: the last one stays
            page.keyboard.press("ArrowRight")
            seen.append(visible(page))
        assert seen == [[anchor] for anchor in [*ANCHORS, "update-2"]]
        page.keyboard.press("ArrowLeft")
        assert visible(page) == ["update-1"]
        page.keyboard.press("Home")
        assert visible(page) == ["forward-1"]


def test_a_link_or_an_address_leads_to_a_step(browser: Any, xor_page: Path) -> None:
    with opened(browser, xor_page, at="#error-1") as page:
        assert visible(page) == ["error-1"]
        page.click('nav a[href="#gradient-2"]')
        assert visible(page) == ["gradient-2"]
        assert page.get_attribute("nav a[aria-current]", "href") == "#gradient-2" == page.evaluate("location.hash")


def hot(page: Any, selector: str) -> int:
    return page.locator(f".current {selector}.hot").count()


def test_a_term_of_the_equation_lights_up_in_the_drawing_and_the_matrix(browser: Any, xor_page: Path) -> None:
    with opened(browser, xor_page) as page:
        plain = page.evaluate("getComputedStyle(document.querySelector('.current .weights.active line')).stroke")
        page.hover('.current .equations [data-t="w1"]')
        assert hot(page, "g.weights") == 1
        assert hot(page, "figure.grid") == 1
        assert hot(page, ".equations .term") == 1
        assert (
            page.evaluate("getComputedStyle(document.querySelector('.current .weights.active line')).stroke") != plain
        )
        page.hover('.current .equations [data-t="a1"]')
        assert page.locator(".current g.neurons.hot").get_attribute("data-t") == "a1"
        page.hover("h1")
        assert page.locator(".hot, .warm").count() == 0


def test_a_line_of_the_drawing_lights_up_in_the_equation_and_the_matrix(browser: Any, xor_page: Path) -> None:
    with opened(browser, xor_page) as page:
        text = page.text_content('.current td[data-k="w1:1:0"]')
        page.hover('.current g.weights text[data-k="w1:1:0"]')
        assert page.locator(".current .equations .warm").get_attribute("data-t") == "w1"
        assert page.locator(".current td.hot").get_attribute("data-k") == "w1:1:0"
        assert page.text_content("#tip") == f"w¹ [2, 1] = {text}"  # given: no formula
        assert page.locator("#tip").is_visible()


def test_a_matrix_is_read_by_the_keyboard(browser: Any, wide_page: Path) -> None:
    with opened(browser, wide_page) as page:
        page.focus('.current figure[data-t="w1"] table')
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowDown")
        assert visible(page) == ["forward-1"]  # the arrows move in the matrix, not from step to step
        assert page.locator(".current td.hot").get_attribute("data-k") == "w1:1:1"
        value = typeset(data_of(wide_page)["numbers"]["w1"][0][1][1])
        assert page.text_content("#tip") == f"mean of w¹ [17–32, 26–50] = {value}"
        page.keyboard.press("Escape")
        page.keyboard.press("ArrowRight")
        assert visible(page) == ["forward-2"]


def test_another_example_and_another_neuron(browser: Any, xor_page: Path) -> None:
    numbers = {name: [row for row in values[0]] for name, values in data_of(xor_page)["numbers"].items()}
    with opened(browser, xor_page, at="#forward-1") as page:
        page.select_option("#example", label="3")
        assert page.text_content(".current h3 .which") == "3"
        assert [typeset(z) for z in numbers["z1"][2]] == page.locator(
            '.current td[data-k^="z1:*"]'
        ).all_text_contents()[:3]
        page.click('.current td[data-k="w1:2:1"]')  # follows neuron 3
        assert page.locator(".current .written").first.locator('[data-k="z1:*:@"]').text_content() == typeset(
            numbers["z1"][2][2]
        )
        assert page.locator(".current .written").first.locator("[data-at]").text_content() == "3"
        page.click('.current .batch figure[data-t="z1"] tr:nth-child(4) td')  # follows example 4
        assert page.input_value("#example") == "3"


@pytest.mark.parametrize("net", ["xor_page", "wide_page"])
@pytest.mark.parametrize("script", [True, False])
def test_nothing_is_wider_than_the_window(browser: Any, net: str, script: bool, request: pytest.FixtureRequest) -> None:
    with opened(browser, request.getfixturevalue(net), java_script_enabled=script) as page:
        for _ in ANCHORS if script else ANCHORS[:1]:
            for width in (360, 1400):
                page.set_viewport_size({"width": width, "height": 900})
                assert page.evaluate("document.scrollingElement.scrollWidth") <= width
            page.keyboard.press("ArrowRight")


LOWEST_CONTRAST = """() => {
    const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
    const channels = (colour) => {
        canvas.clearRect(0, 0, 1, 1);
        canvas.fillStyle = colour;
        canvas.fillRect(0, 0, 1, 1);
        return [...canvas.getImageData(0, 0, 1, 1).data];
    };
    const luminance = (rgb) => rgb.slice(0, 3).map((c) => c / 255)
        .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
        .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
    const behind = (element) => {
        const circle = element.matches("text.number") && element.parentNode.querySelector(":scope > circle");
        if (circle) return channels(getComputedStyle(circle).fill);
        for (let e = element; e; e = e.parentElement) {
            const colour = channels(getComputedStyle(e).backgroundColor);
            if (colour[3] === 255) return colour;
        }
        return channels("white");
    };
    let lowest = { ratio: 21, what: "" };
    for (const element of document.querySelectorAll("body *")) {
        const text = [...element.childNodes].filter((n) => n.nodeType === 3).map((n) => n.data.trim()).join("");
        if (!text || !element.checkVisibility() || element.matches("script, :disabled, :disabled *")) continue;
        if (element.matches("td") && getComputedStyle(element).fontSize === "0px") continue;
        const style = getComputedStyle(element);
        const pair = [channels(element.closest("svg") ? style.fill : style.color), behind(element)].map(luminance);
        const ratio = (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
        if (ratio < lowest.ratio) lowest = { ratio, what: `${element.outerHTML.slice(0, 60)} ${text}` };
    }
    return lowest;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_can_be_read(browser: Any, scheme: str, tmp_path: Path) -> None:
    """The contrast of every text against what is behind it, as rendered: WCAG AA asks for 4.5."""
    page_path = written(tmp_path, xor_traces(3))
    with opened(browser, page_path, color_scheme=scheme) as page:
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, background[4:-1].split(","))) < 200) == (scheme == "dark")
        for i in range(len(ANCHORS)):
            if i == 0:
                page.hover('.current .equations [data-t="w1"]')
            lowest = page.evaluate(LOWEST_CONTRAST)
            assert lowest["ratio"] >= 4.5, lowest
            page.keyboard.press("ArrowRight")


TEXTS = """() => [...document.querySelectorAll("section.step")].map(
    (s) => [...s.querySelectorAll("h2, .sentence, figcaption, math, td, text, .note, small:not(.hint)")]
        .map((e) => `${e.textContent.trim().replace(/\\s+/g, " ")} ${Number(e.style.getPropertyValue("--v"))}`))"""


def test_without_javascript_the_page_is_all_there_and_the_same(browser: Any, tmp_path: Path) -> None:
    model: Any = xor_net()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.125, -0.5625], [-1e-5, 4e7], [0.0, 2.25]]))  # halves, large and small
    path = written(tmp_path, xor_traces(model=model))
    with opened(browser, path, java_script_enabled=False) as page:
        assert visible_without_script(page) == ANCHORS
        assert not page.locator("#next").is_visible() and not page.locator("#example").is_visible()
        without = page.evaluate(TEXTS)
    with opened(browser, path) as page:
        for _ in ANCHORS:
            page.keyboard.press("ArrowRight")  # the script writes every number of a step when it shows it
        assert page.evaluate(TEXTS) == without


def visible_without_script(page: Any) -> list[str]:
    return [section.get_attribute("id") for section in page.locator("section.step").all() if section.is_visible()]


def test_the_slider_moves_through_the_training_steps(browser: Any, tmp_path: Path) -> None:
    path = written(tmp_path, xor_traces(50))
    numbers = data_of(path)["numbers"]
    with opened(browser, path, at="#update-2") as page:
        before = page.get_attribute("#now", "cx")
        page.focus("#time")
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowRight")
        assert page.text_content("#moment") == "3"
        assert page.text_content("#cost") == typeset(numbers["C"][2][0][0])
        shown = page.locator('.current td[data-k^="W2:"]').all_text_contents()
        assert shown == [typeset(w) for w in numbers["W2"][2][0]]
        assert page.get_attribute("#now", "cx") != before
        page.click("#play")
        page.wait_for_selector("#moment:not(:text-is('3'))")
        page.click("#play")
    with opened(browser, path, java_script_enabled=False) as page:
        assert "This page holds 50 training steps" in page.inner_text("body")


def test_a_wide_net_is_a_small_page(browser: Any, wide_page: Path) -> None:
    assert wide_page.stat().st_size < 3_000_000
    with opened(browser, wide_page) as page:
        assert page.evaluate("document.querySelectorAll('*').length") < 20_000
        assert "shown as 32 × 32 block means of 512 × 784" in page.inner_text("main")
        assert "8 of 784" in page.text_content("main") and "8 of 512" in page.text_content("main")
