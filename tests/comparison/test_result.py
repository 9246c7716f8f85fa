"""How a comparison is shown: as a table, JSON, HTML, a plot."""

import html
import json
import re
import sys
from collections.abc import Iterator

import pytest
from torch import nn

import manualgrad as mg
from manualgrad.comparison.compare import compare
from manualgrad.comparison.result import Comparison, Row
from manualgrad.extras import MissingExtraError
from tests.comparison.batch import X, Y, wrong_tanh


@pytest.fixture
def comparison() -> Iterator[Comparison]:
    model = nn.Sequential()
    model.add_module("<b>&", mg.Dense(3, 2, activation=wrong_tanh()))
    yield mg.compare(model, nn.MSELoss(), X, Y)


def test_names() -> None:
    assert mg.compare is compare and mg.Comparison is Comparison


def test_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    rows = (Row("0.weight", (7, 3), 1e-7, 2e-6, 3e-8, 4e-8, True), Row("scale", (), 0.5, 1.0, 1.0, 0.0, False))
    expected = [
        "gradient  shape   max |by hand - autograd|  relative  by hand vs float64  autograd vs float64   ok",
        "-" * 98,
        "0.weight  7x3                      1.0e-07   2.0e-06             3.0e-08              4.0e-08  yes",
        "scale     scalar                   5.0e-01   1.0e+00             1.0e+00              0.0e+00   NO",
        "NOT ok: scale. Largest relative difference 1.0e+00.",
    ]
    assert str(Comparison(rows, 0.1, 0.1)).splitlines() == expected
    assert str(Comparison(rows[:1], 0.1, 0.1)).splitlines()[-1] == (
        "All 1 rows ok. Largest relative difference 2.0e-06."
    )


def test_the_table_fits_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = (
        Row("0.weight", (7, 3), 1e-7, 2e-6, 3e-8, 4e-8, True),
        Row("encoder." * 20 + "weight", (128, 64), 0.5, 1.0, 1.0, 0.0, False),
        Row("\x1b[31m\u202e", (), 0.5, 1.0, 1.0, 0.0, False),
    )
    comparison = Comparison(rows, 0.1, 0.1)
    monkeypatch.delenv("COLUMNS", raising=False)
    assert max(map(len, str(comparison).splitlines())) <= 80
    for width in (80, 60):
        monkeypatch.setenv("COLUMNS", str(width))
        text = str(comparison)
        assert max(map(len, text.splitlines())) <= width
        assert "\x1b" not in text and "\u202e" not in text
        assert text.count("5.0e-01") == 2 and "encoder" in text


def test_json(comparison: Comparison) -> None:
    loaded = json.loads(comparison.to_json())
    assert loaded["ok"] is False
    assert loaded["loss_by_hand"] == comparison.loss_by_hand
    assert loaded["max_relative_error"] == comparison.max_relative_error
    assert [row["name"] for row in loaded["rows"]] == ["<b>&.weight", "<b>&.bias", "input"]
    assert loaded["rows"][0]["shape"] == [2, 3]
    assert loaded["rows"][0]["max_absolute_error"] == comparison.rows[0].max_absolute_error


def test_html_is_escaped(comparison: Comparison) -> None:
    page = comparison._repr_html_()
    assert "<b>" not in page and "&lt;b&gt;&amp;.weight" in page
    cells = [html.unescape(cell) for cell in re.findall(r"<td>(.*?)</td>", page)]
    assert cells[::7] == ["<b>&.weight", "<b>&.bias", "input"]
    assert cells[6] == "NO"


def test_plot(comparison: Comparison) -> None:
    pytest.importorskip("matplotlib")
    figure = comparison.plot()
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["<b>&.weight", "<b>&.bias", "input"]
    errors = [row.error_by_hand for row in comparison.rows] + [row.error_by_autograd for row in comparison.rows]
    assert [patch.get_width() for patch in axes.patches] == errors
    figure.canvas.draw()


def test_plot_without_matplotlib(comparison: Comparison, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    sentence = (
        "Comparison.plot() expected the package `matplotlib`, which is not installed. "
        'Install it with: python -m pip install "manualgrad[demo]", '
        'or in a clone: python -m pip install -c constraints.txt -e ".[demo]"'
    )
    with pytest.raises(MissingExtraError, match=f"^{re.escape(sentence)}$"):
        comparison.plot()


def test_plot_of_infinite_errors() -> None:
    pytest.importorskip("matplotlib")
    inf = float("inf")
    figure = Comparison((Row("w", (1,), inf, inf, inf, 0.0, False),), 0.1, 0.1).plot()
    assert [patch.get_width() for patch in figure.axes[0].patches] == [1e3, 0.0]
    figure.canvas.draw()
