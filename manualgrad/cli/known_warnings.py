"""Warnings that Lightning gives in every run, whatever the user does. Only the command line ignores them."""

import os
import warnings

from lightning.pytorch import LightningDataModule

from manualgrad.lightning.data import DigitsDataModule


def ignore_known_warnings() -> None:
    """Ignore each by its message, and by the module in Lightning that causes it where that is known."""
    # Lightning 2.6 builds a tree specification in a way that torch 2.13 deprecates.
    warnings.filterwarnings(
        "ignore",
        message=r"`isinstance\(treespec, LeafSpec\)` is deprecated",
        category=FutureWarning,
        module=r"lightning\.pytorch\.utilities\._pytree",
    )
    # Lightning 2.6 calls jsonargparse in ways that it deprecates.
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    # A resumed run has a folder of its own, so the best checkpoint before it belongs to another run, as it should.
    warnings.filterwarnings("ignore", message="The dirpath has changed from")


def ignore_hint_about_workers(data: LightningDataModule | None) -> None:
    """Lightning's hint is about data on disk. The digits lie in memory, where worker processes only cost time."""
    if isinstance(data, DigitsDataModule) and data.num_workers == 0:
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
