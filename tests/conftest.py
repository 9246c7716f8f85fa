"""What every test starts from: the same random numbers, one thread."""

import random
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import torch


QUIET = (
    "--no-sandbox --disable-gpu --no-first-run --disable-sync --disable-background-networking --disable-component-update"
).split()


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)
    random.seed(0)


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Small tensors gain nothing from more, and sums round the same way on every machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def small_weights_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients of the small weights of tests stay factored too, which would be dense for speed."""
    monkeypatch.setattr("manualgrad.factored.choice.SMALLEST_FACTORED_WEIGHT", 0)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Debian's Chromium, without a window and without any traffic of its own."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright: python -m pip install playwright")
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.skip("needs a browser: apt-get install chromium")
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=path, args=QUIET)
        yield browser
        browser.close()
