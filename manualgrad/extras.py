"""Optional dependencies: a clear sentence where one is missing."""

from __future__ import annotations

from importlib.util import find_spec


class MissingExtraError(ImportError):
    """A part of manualgrad needs a package that is not installed. The message names the pip command."""


def require(package: str, *, extra: str, purpose: str) -> None:
    """Raises MissingExtraError unless `package` can be imported."""
    if find_spec(package.partition(".")[0]) is None:
        raise MissingExtraError(
            f"{purpose} expected the package `{package}`, which is not installed. "
            f'Install it with: python -m pip install "manualgrad[{extra}]"'
        )
