"""Training steps to explain, and pages of them opened in a browser."""

from __future__ import annotations

import json
import re
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import manualgrad as mg
from manualgrad.explain.page.write_page import write_page
from manualgrad.tracing.trace import Trace, trace


XOR = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
EITHER = torch.tensor([[0.0], [1.0], [1.0], [0.0]], dtype=torch.float64)
ETA = 2.0


def xor_net(seed: int = 3) -> mg.MLP:
    torch.manual_seed(seed)
    return mg.MLP([2, 3, 1], "sigmoid", "sigmoid", dtype=torch.float64)


def xor_traces(steps: int = 1, model: mg.MLP | None = None) -> list[Trace]:
    model = model or xor_net()
    optimizer = mg.GradientDescent(model.parameters(), lr=ETA, factored=False)
    loss, traces = mg.QuadraticLoss(), []
    for _ in range(steps):
        traces.append(trace(model, loss, XOR, EITHER, optimizer))
        optimizer.zero_grad()
        loss(model(XOR), EITHER).backward()
        optimizer.step()
    return traces


def wide_traces() -> list[Trace]:
    model = mg.MLP([784, 512, 10], "relu")
    optimizer = mg.GradientDescent(model.parameters(), lr=0.1)
    return [trace(model, mg.SoftmaxCrossEntropyLoss(), torch.rand(60, 784), torch.randint(10, (60,)), optimizer)]


def written(directory: Path, traces: list[Trace], **options: Any) -> Path:
    path = directory / "page.html"
    write_page(traces, path, **options)
    return path


def data_of(path: Path) -> dict[str, Any]:
    """What the page's script reads, with every row of numbers as a list."""
    found = re.search(
        r'<script type="application/json" id="data">(.*?)</script>', path.read_text(encoding="utf-8"), re.S
    )
    assert found
    data = json.loads(found[1])
    rows = {name: [[row.split(" ") for row in step] for step in steps] for name, steps in data["numbers"].items()}
    return {**data, "numbers": rows}


def text_of(path: Path) -> str:
    """The page's own words, on one line."""
    page = re.sub(r"<(script|style).*?</\1>", " ", path.read_text(encoding="utf-8"), flags=re.S)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", page))


def quadratic(model: nn.Module, x: Tensor, y: Tensor, **options: Any) -> Any:
    return trace(model, mg.QuadraticLoss(), x, y, **options)


@contextmanager
def opened(browser: Any, path: Path, *, width: int = 1000, at: str = "", **options: Any) -> Any:
    """The page in a browser. Fails if it wrote to the console, opened a dialog, or asked for anything but itself."""
    context = browser.new_context(viewport={"width": width, "height": 900}, **options)
    page = context.new_page()
    complaints: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("dialog", lambda dialog: complaints.append(f"dialog {dialog.message}"))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(path.as_uri() + at)
    yield page
    context.close()
    assert complaints == []
    assert [url for url in requests if not url.startswith("data:")] == [path.as_uri()]
