"""Reading a Lightning checkpoint, with a clear sentence where a file is not one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


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
    if not isinstance(checkpoint, dict) or not {"state_dict", "pytorch-lightning_version"} <= checkpoint.keys():
        raise ValueError(
            f"Expected a checkpoint that Lightning wrote, got {str(path)!r}, which is not one. "
            "Pass a file that `manualgrad fit` has written, for example lightning_logs/version_0/checkpoints/last.ckpt."
        )
    return checkpoint
