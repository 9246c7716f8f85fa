"""What `write_page` writes and refuses: hostile names, numbers that are not finite, runs."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import manualgrad as mg
from manualgrad.explain.page.write_page import write_page
from manualgrad.extras import MissingExtraError
from manualgrad.tracing.trace import trace
from tests.explain.explained import EITHER, XOR, opened, quadratic, wide_traces, written, xor_net, xor_traces


HOSTILE = "<script>alert(1)</script>"


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


def test_training_steps_far_apart(browser: Any, tmp_path: Path) -> None:
    path = written(tmp_path, xor_traces(3), steps=[0, 100, 3000])
    with opened(browser, path) as page:
        assert page.inner_text(".time label").startswith("Training step 0 of 3000, cost C = 0.1")
        page.focus("#time")
        page.keyboard.press("ArrowRight")
        assert page.text_content("#moment") == "100"


def test_a_run_of_a_wide_net_stays_small(tmp_path: Path) -> None:
    path = written(tmp_path, wide_traces() * 20)
    assert path.stat().st_size < 3_000_000


def test_without_jinja(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    sentence = (
        "The page expected the package `jinja2`, which is not installed. "
        'Install it with: python -m pip install "manualgrad[demo]", '
        'or in a clone: python -m pip install -c constraints.txt -e ".[demo]"'
    )
    with pytest.raises(MissingExtraError, match=f"^{re.escape(sentence)}$"):
        write_page(xor_traces(), tmp_path / "page.html")


def test_a_folder_that_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "nowhere" / "page.html"
    sentence = (
        f"Trace.to_html() expected `path` in a folder that exists, got {str(path)!r}, "
        f"and there is no folder {str(path.parent)!r}. Make the folder first, or name another file."
    )
    with pytest.raises(FileNotFoundError, match=f"^{re.escape(sentence)}$"):
        xor_traces()[0].to_html(path)
    assert not path.parent.exists()


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
