"""Optional dependencies: a clear sentence where one is missing."""

from importlib.util import find_spec


PIP_NAMES = {"sklearn": "scikit-learn"}  # where pip calls a package otherwise than Python does


class MissingExtraError(ImportError):
    """A part of manualgrad needs a package that is not installed. The message names the pip command."""


def require(package: str, *, extra: str, purpose: str) -> None:
    """Raises MissingExtraError unless `package` can be imported."""
    module = package.partition(".")[0]
    if find_spec(module) is None:
        raise MissingExtraError(
            f"{purpose} expected the package `{PIP_NAMES.get(module, package)}`, which is not installed. "
            f'Install it with: python -m pip install "manualgrad[{extra}]", '
            f'or in a clone: python -m pip install -c constraints.txt -e ".[{extra}]"'
        )
