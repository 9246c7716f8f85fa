"""Reading a Lightning checkpoint, with one clear sentence if a file is not one."""

import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from manualgrad.explain.printable import printable
from manualgrad.lightning.checkpoint_io import check_intact


if TYPE_CHECKING:
    from manualgrad.lightning.module import BackpropModule

PARTS = {  # of what type each part must be, where it is there
    **dict.fromkeys(("state_dict", "hyper_parameters", "manualgrad.options", "loops", "callbacks"), dict),
    **dict.fromkeys(("optimizer_states", "lr_schedulers"), list),
    **dict.fromkeys(("epoch", "global_step"), int),
}


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The checkpoint at `path`, on the CPU. Only tensors and plain values are read: no code in the file is run.

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged, or not a checkpoint that Lightning wrote.
    """
    name = printable(str(path), 200)
    if not os.path.isfile(path):
        raise FileNotFoundError(
            f"Expected the path of a checkpoint, got {name!r}, which is no file. "
            "Pass one that `manualgrad fit` has written, for example lightning_logs/version_0/checkpoints/last.ckpt."
        )
    check_intact(path)
    checkpoint, fault = None, "which is not one"
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what the unpickler raises on arbitrary bytes is not bounded
        _, reader, reason = str(error).partition("WeightsUnpickler error: ")
        if reader and zipfile.is_zipfile(path):
            fault = f"which cannot be read: {printable(reason.strip().splitlines()[0], 300)}"
    if isinstance(checkpoint, dict) and "pytorch-lightning_version" in checkpoint:
        fault = next(_faults(checkpoint), "")
    if fault:
        raise ValueError(
            f"Expected a checkpoint that Lightning wrote, got {name!r}, {fault}. "
            "Pass a file that `manualgrad fit` has written, for example lightning_logs/version_0/checkpoints/last.ckpt."
        )
    assert isinstance(checkpoint, dict)
    return checkpoint


def _faults(checkpoint: dict[Any, Any]) -> Iterator[str]:
    for part, kind in PARTS.items():
        if not isinstance(checkpoint.get(part, kind()), kind):
            yield f"in which {part!r} is of type {type(checkpoint[part]).__name__}, not {kind.__name__}"
    if not all(isinstance(key, str) for key in checkpoint.get("state_dict", {0: None})):
        yield "in which 'state_dict' does not hold the weights by name"
    options = checkpoint.get("hyper_parameters", {})
    if not all(isinstance(key, str) for key in options) or not isinstance(options.get("_class_path", ""), str):
        yield "in which 'hyper_parameters' are not values by name"
    for key in ("model", "data"):
        kept = checkpoint.get("manualgrad.options", {}).get(key, {"class_path": ""})
        if not (isinstance(kept, dict) and isinstance(kept.get("class_path"), str)):
            yield f"in which the options of the {key} name no class"


def load_backprop_module(path: str | Path) -> "BackpropModule":
    """The `BackpropModule` in the checkpoint, made from the options that were saved with it, on the CPU.

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged, not a checkpoint that Lightning wrote, or one of another module.
    """
    from manualgrad.lightning.module import BackpropModule

    checkpoint = read_checkpoint(path)
    options = checkpoint.get("hyper_parameters", {})
    saved = options.get("_class_path", BackpropModule.__name__)  # only `manualgrad fit` saves it
    if saved.rpartition(".")[2] != BackpropModule.__name__ or "sizes" not in options:
        came = printable(saved) if "_class_path" in options else "another module"
        raise ValueError(
            f"Expected a checkpoint of a BackpropModule, got one of {came}. "
            "Load your module and call mg.trace(module, loss, inputs, targets)."
        )
    return BackpropModule.load_from_checkpoint(path, map_location="cpu", weights_only=True)


def check_resumable(path: str | Path) -> dict[str, Any]:
    """The checkpoint. Raises what `read_checkpoint` raises, and ValueError for one without the optimizer, from which training
    cannot go on."""
    checkpoint = read_checkpoint(path)
    if "optimizer_states" not in checkpoint:
        raise ValueError(
            f"Expected a checkpoint to go on training from, got {printable(str(path), 200)!r}, which holds the weights alone. "
            "Save one with save_weights_only=False, or test it with `manualgrad test`."
        )
    return checkpoint
