"""Reading a Lightning checkpoint, with a clear sentence where a file is not one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch


if TYPE_CHECKING:
    from manualgrad.lightning.module import BackpropModule


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The checkpoint at `path`, on the CPU. Only tensors and plain values are read: no code in the file is run.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a checkpoint that Lightning wrote.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"Expected the path of a checkpoint, got {str(path)!r}, which is no file. "
            "Pass one that `manualgrad fit` has written, for example lightning_logs/version_0/checkpoints/last.ckpt."
        )
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # what the unpickler raises on arbitrary bytes is not bounded
        checkpoint = None
    if (
        not isinstance(checkpoint, dict)
        or "pytorch-lightning_version" not in checkpoint
        or not isinstance(checkpoint.get("state_dict"), dict)
    ):
        raise ValueError(
            f"Expected a checkpoint that Lightning wrote, got {str(path)!r}, which is not one. "
            "Pass a file that `manualgrad fit` has written, for example lightning_logs/version_0/checkpoints/last.ckpt."
        )
    return checkpoint


def load_backprop_module(path: str | Path) -> BackpropModule:
    """The `BackpropModule` in the checkpoint, made from the options that were saved with it, on the CPU.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a checkpoint that Lightning wrote, or one of another module.
    """
    from manualgrad.lightning.module import BackpropModule

    checkpoint = read_checkpoint(path)
    options = checkpoint.get("hyper_parameters", {})
    saved = options.get("_class_path", BackpropModule.__name__)  # only `manualgrad fit` saves it
    if saved.rpartition(".")[2] != BackpropModule.__name__ or "sizes" not in options:
        raise ValueError(
            f"Expected a checkpoint of a BackpropModule, got one of {saved if '_class_path' in options else 'another module'}. "
            "Load your module and call mg.trace(module, loss, inputs, targets)."
        )
    return BackpropModule.load_from_checkpoint(path, map_location="cpu", weights_only=True)


def check_resumable(path: str | Path) -> None:
    """Raises what `read_checkpoint` raises, and ValueError for one without the optimizer, from which training cannot go on."""
    if "optimizer_states" not in read_checkpoint(path):
        raise ValueError(
            f"Expected a checkpoint to go on training from, got {str(path)!r}, which holds the weights alone. "
            "Save one with save_weights_only=False, or test it with `manualgrad test`."
        )
