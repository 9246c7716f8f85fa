"""The notebooks of the course: each runs, with and without the solutions, and shows what is committed; it opens as a page."""

import contextlib
import importlib
import io
import os
import re
import sys
from importlib.metadata import files
from pathlib import Path
from typing import Any

import pytest

from tests.printed import assert_printed


nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")

COURSE = Path(__file__).parents[2] / "examples" / "course"
NOTEBOOKS = sorted(COURSE.glob("*.ipynb"))
SMALL = 400_000  # bytes of a notebook with all that it shows
AFRESH = "%reset -f\nimport torch\ntorch.set_default_dtype(torch.float32)"


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


def asked_for(cell: Any) -> str:
    """The name of the function that the cell asks the student for, or ""."""
    found = re.search(r"^exercises\.check\((\w+)\)", cell.source, re.MULTILINE)
    return found[1] if found and cell.cell_type == "code" else ""


def solved(cell: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A cell with the solution in place of the student's function."""
    monkeypatch.syspath_prepend(str(COURSE))
    exercises = importlib.import_module("exercises")
    with contextlib.redirect_stdout(io.StringIO()) as solution:
        exercises.solution(asked_for(cell))
    types = "from __future__ import annotations\nfrom torch import Tensor\nfrom torch.nn import functional as F\n"
    function = "from collections.abc import Callable as Function\n"
    check = f"exercises.check({asked_for(cell)})"
    return nbformat.v4.new_code_cell(types + function + solution.getvalue() + check)


def text(cell: Any) -> str:
    """What the cell shows as text, figures by their names alone."""
    return "\n".join(output.get("text") or output.get("data", {}).get("text/plain", "") for output in cell.outputs)


def test_each_notebook_runs_and_shows_what_is_committed(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ipykernel")
    from jupyter_client.kernelspec import KernelSpec

    monkeypatch.delenv("MPLBACKEND", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    everything = nbformat.v4.new_notebook()  # one kernel for all: its start takes longer than a notebook
    committed, ours = [], []
    for path in NOTEBOOKS:
        everything.cells.append(nbformat.v4.new_code_cell(AFRESH))
        for cell in read(path).cells:
            if cell.cell_type == "code":
                committed.append(cell)
                ours.append(nbformat.v4.new_code_cell(cell.source))
                everything.cells.append(ours[-1])
                if asked_for(cell):
                    everything.cells.append(solved(cell, monkeypatch))
    client = nbclient.NotebookClient(everything, timeout=300, resources={"metadata": {"path": str(COURSE)}})
    client.create_kernel_manager()
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    client.km._kernel_spec = KernelSpec(argv=command, display_name="Python", language="python")
    path_of_package = os.pathsep.join([str(COURSE.parents[1]), os.environ.get("PYTHONPATH", "")])
    client.execute(env={**os.environ, "PYTHONPATH": path_of_package})
    solutions = [cell for cell in everything.cells if asked_for(cell) and cell not in ours]
    assert len(solutions) == 14 and all(text(cell).startswith("Right: ") for cell in solutions)
    for cell, now in zip(committed, ours, strict=True):
        assert [output.output_type for output in now.outputs] == [output.output_type for output in cell.outputs]
        assert not any(output.get("name") == "stderr" for output in now.outputs)
        assert_printed(text(now), text(cell))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_is_small_and_holds_no_more_than_cells_and_outputs(path: Path) -> None:
    notebook = read(path)
    nbformat.validate(notebook)
    assert path.stat().st_size < SMALL
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert all(set(cell.metadata) <= {"tags"} for cell in notebook.cells)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == [*range(1, len(code) + 1)]
    assert sum(bool(asked_for(cell)) for cell in code) == 2


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_links_lead_somewhere(path: Path) -> None:
    words = "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")
    links = re.findall(r"\]\(([^)]+)\)", words)
    assert all((COURSE / link).exists() for link in links)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_opens_in_a_browser_without_the_network(
    path: Path, browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporters = pytest.importorskip("nbconvert.exporters")
    template = next(file for file in files("nbconvert") or [] if file.match("templates/lab/index.html.j2"))
    monkeypatch.setenv("JUPYTER_PATH", str(Path(str(template.locate())).resolve().parents[3]))  # in any environment
    exporter = exporters.HTMLExporter(mathjax_url="", require_js_url="", jquery_url="")
    html = tmp_path / "notebook.html"
    html.write_text(exporter.from_notebook_node(read(path))[0], encoding="utf-8")
    page = browser.new_page(viewport={"width": 400, "height": 800})
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: complaints.append(request.url) if request.url.startswith("http") else None)
    page.goto(html.as_uri())
    for frame in [page.frame_locator(f"iframe >> nth={i}") for i in range(page.locator("iframe").count())]:
        frame.locator("#next").click()
        assert frame.locator(".current").get_attribute("id") == "forward-2"
        frame.locator("body").press("ArrowRight")
        assert frame.locator(".current").get_attribute("id") == "loss"
    assert page.locator("iframe, img").count() >= 1
    assert complaints == []
    page.close()
