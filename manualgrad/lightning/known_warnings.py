"""Warnings that Lightning causes by itself, and that nobody who reads them could do anything about."""

import os
import warnings


def silence() -> None:
    """Ignore them, each by its exact message, and by the module in Lightning that causes it where that is known."""
    # Lightning 2.6 builds a tree specification in a way that torch 2.13 has deprecated: in every run, of any model.
    warnings.filterwarnings(
        "ignore",
        message=r"`isinstance\(treespec, LeafSpec\)` is deprecated",
        category=FutureWarning,
        module=r"lightning\.pytorch\.utilities\._pytree",
    )
    # Lightning 2.6 calls its argument parser, jsonargparse, in ways that this has deprecated: at every command line.
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    # A checkpoint in mid-epoch holds the weights after the step, with engine="train_step" as with "autograd".
    warnings.filterwarnings(
        "ignore",
        message=r"Using ModelCheckpoint with manual optimization and every_n_train_steps",
        category=UserWarning,
    )
