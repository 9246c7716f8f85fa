"""A trace in a notebook: the page in a frame of its own, its text where frames are removed, and one picture for each plot."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import manualgrad as mg
from tests.explain.explained import xor_traces


def cell_of(trace: Any) -> str:
    return trace._repr_html_()


def test_two_pages_on_one_notebook_do_not_disturb_one_another(browser: Any, tmp_path: Path) -> None:
    (trace,) = xor_traces()
    notebook = tmp_path / "notebook.html"
    notebook.write_text(f"<!DOCTYPE html><meta charset=utf-8>{cell_of(trace)}{cell_of(trace)}", encoding="utf-8")
    page = browser.new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(notebook.as_uri())
    first, second = (page.frame_locator("iframe >> nth=" + str(i)) for i in range(2))
    first.locator("#next").click()
    assert first.locator(".current").get_attribute("id") == "forward-2"
    first.locator("body").press("ArrowRight")
    assert first.locator(".current").get_attribute("id") == "loss"
    first.locator('nav a[href="#update-1"]').click()
    assert first.locator(".current").get_attribute("id") == "update-1"
    assert second.locator(".current").get_attribute("id") == "forward-1"
    assert not page.locator("pre").first.is_visible()
    assert complaints == []
    page.close()


def test_where_frames_are_removed_the_text_is_there(browser: Any, tmp_path: Path) -> None:
    (trace,) = xor_traces()
    sanitized = re.sub(r"<(iframe|style).*?</\1>", "", cell_of(trace), flags=re.S)
    notebook = tmp_path / "untrusted.html"
    notebook.write_text(f"<!DOCTYPE html><meta charset=utf-8>{sanitized}", encoding="utf-8")
    page = browser.new_page()
    page.goto(notebook.as_uri())
    assert page.locator("pre").is_visible() and "4. UPDATE" in page.inner_text("pre")
    page.close()


def test_what_has_no_page_is_text() -> None:
    complex_net = mg.MLP([3, 2], "tanh", dtype=torch.complex64)
    x = torch.rand(4, 3).to(torch.complex64)
    html = cell_of(mg.trace(complex_net, lambda a, y: (a - y).abs().mean(), x, torch.zeros(4, 2)))
    assert html.startswith("<pre>One training step") and "iframe" not in html


CELLS = [
    "import torch, manualgrad as mg\n"
    "model = mg.MLP([2, 3, 1], 'sigmoid')\n"
    "arguments = model, mg.QuadraticLoss(), torch.rand(4, 2), torch.rand(4, 1)\n"
    "step = mg.trace(*arguments)\n"
    "step",
    "step.plot()",
    "figure = step.plot()",
    "mg.compare(*arguments).plot()",
    "import matplotlib.pyplot as plt\nstep.plot()\nplt.show()",
]


def test_a_fresh_kernel_shows_each_plot_once(monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    import sys

    from jupyter_client.kernelspec import KernelSpec

    monkeypatch.delenv("MPLBACKEND", raising=False)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in CELLS])
    client = nbclient.NotebookClient(notebook, timeout=600)
    client.create_kernel_manager()
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    client.km._kernel_spec = KernelSpec(argv=command, display_name="Python", language="python")
    client.execute()
    shown = [[output.data for output in cell.outputs if "data" in output] for cell in notebook.cells]
    assert len(shown[0]) == 1 and "srcdoc" in shown[0][0]["text/html"]
    assert shown[0][0]["text/plain"].startswith("Trace(2 layers, 4 examples, QuadraticLoss C = ")
    for pictures in shown[1:]:
        assert [("image/png" in data) for data in pictures] == [True]


def test_a_script_s_figure_is_pyplot_s() -> None:
    from matplotlib import pyplot

    figure = xor_traces()[0].plot()
    assert pyplot.fignum_exists(figure.number) and pyplot.gcf() is figure
    pyplot.close(figure)
