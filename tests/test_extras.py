"""The sentence for a package that is not installed."""

import re
import sys

import pytest

from manualgrad.extras import MissingExtraError, require


SENTENCE = (
    "Comparison.plot() expected the package `{}`, which is not installed. "
    'Install it with: python -m pip install "manualgrad[demo]", '
    'or in a clone: python -m pip install -c constraints.txt -e ".[demo]"'
)


@pytest.mark.parametrize("package", ["no_such_package", "no_such_package.part"])
def test_missing(package: str) -> None:
    with pytest.raises(MissingExtraError, match=f"^{re.escape(SENTENCE.format(package))}$"):
        require(package, extra="demo", purpose="Comparison.plot()")


def test_blocked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # as Python itself spells "cannot be imported"
    with pytest.raises(MissingExtraError, match=f"^{re.escape(SENTENCE.format('matplotlib'))}$"):
        require("matplotlib", extra="demo", purpose="Comparison.plot()")


def test_pip_s_name_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(MissingExtraError, match=f"^{re.escape(SENTENCE.format('scikit-learn'))}$"):
        require("sklearn.datasets", extra="demo", purpose="Comparison.plot()")


def test_is_an_import_error() -> None:
    with pytest.raises(ImportError):
        require("no_such_package", extra="demo", purpose="this test")


def test_installed() -> None:
    require("torch", extra="demo", purpose="this test")
    require("torch.nn", extra="demo", purpose="this test")
