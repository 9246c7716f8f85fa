"""The tables that reports show in a notebook: what `print` shows, cell by cell."""

from __future__ import annotations

import html
import re

import torch
from torch import nn

import manualgrad as mg
from manualgrad.bench.layers import Layer
from manualgrad.bench.rows import Row, Rows


def cells(page: str) -> list[str]:
    return [html.unescape(cell) for cell in re.findall(r"<t[dh]>(.*?)</t[dh]>", page)]


def below(page: str) -> str:
    return html.unescape(re.sub(r"<[^>]*>", "", page.rpartition("</table>")[2]))


class Wrong(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, g):
        return -2 * g * ctx.saved_tensors[0]


def test_a_conversion_report() -> None:
    model = nn.ModuleDict({"<b>": nn.Linear(2, 2), "own": nn.Bilinear(1, 1, 1), "sigma": nn.ReLU()})
    report = mg.conversion_report(mg.convert(model))
    assert cells(report._repr_html_()) == [
        *("layer", "type", "status", "note"),
        *("<b>", "Dense", "converted", ""),
        *("sigma", "ReLU", "converted", ""),
    ]
    assert "<b>" not in report._repr_html_()
    assert below(report._repr_html_()) == "1 of 1 linear layers and 1 of 1 activations converted."


def test_a_report_of_check_backward() -> None:
    report = mg.check_backward(Wrong, torch.square, torch.randn(2), only=("real", "2-d"))
    shown = cells(report._repr_html_())
    assert shown[:3] == ["check", "status", "detail"] and len(shown) % 3 == 0
    assert shown[3:6] == ["gradient", "failed", report.failed["gradient"].detail]
    assert shown[6:9] == ["", "", f"Cure: {report.failed['gradient'].cure}"]
    assert set(shown[3::3]) == {"", *(check.name for check in report)}
    text = below(report._repr_html_()).splitlines()
    printed = str(report).splitlines()
    assert text[0] == printed[0] and text[2:] == printed[-len(text) + 2 :]  # all but the rows


def test_the_rows_of_a_benchmark() -> None:
    layer = Layer("body.<0>", 2, "(4096, 1024)", True, "8 rows (4096 + 1024) < 4096 x 1024")
    fast = Row("<net>", "adamw", False, "a machine", 8, "factored", 0.001, 0.001, 0.001, 2.0, 2**20, layers=(layer,))
    rows = Rows([Row("<net>", "adamw", False, "a machine", 8, "plain", 0.002, 0.002, 0.002, 1.0, 2**22), fast])
    page = rows._repr_html_()
    assert cells(page)[:12] == [
        *("", "batch 8: ms", "x plain", "peak MiB"),
        *("plain", "2", "1.00", "4"),
        *("factored", "1", "2.00", "1"),
    ]
    assert cells(page)[12:15] == ["linear layers, batch 8", "shape", "gradient"] and "body.<0> (2)" in cells(page)
    text = html.unescape(re.sub(r"<[^>]*>", " ", page))
    for line in str(rows).splitlines():
        assert (
            line.startswith("---") or "  " in line or f" {line} " in text or not line
        )  # all that is no row of a table
    assert "<net>" not in page
