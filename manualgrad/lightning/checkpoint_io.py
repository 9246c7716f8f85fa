"""Checkpoint files that are whole or not there: written beside their place, with a checksum that is tested on loading."""

import io
import os
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from manualgrad.activation.built_in import activation_named, elu, leaky_relu, softplus
from manualgrad.explain.printable import printable
from manualgrad.losses.names import LOSSES


# Objects of ours that a user keeps among the hyperparameters: `torch.load(weights_only=True)` reads those that it is told of.
torch.serialization.add_safe_globals([activation_named, leaky_relu, elu, softplus, *LOSSES.values()])

SEAL = b"manualgrad-crc32:"  # then eight digits: the comment at the end of the zip archive that `torch.save` writes
DIGITS = 8


class SafeCheckpointIO(TorchCheckpointIO):
    """For `Trainer(plugins=[SafeCheckpointIO()])`: a kill or a full disk while a checkpoint is written leaves the one before it
    as it was, and a damaged file is refused when it is loaded. `manualgrad fit` uses it. Remote paths are left to Lightning.

    Raises:
        OSError: the file cannot be written. What was at its place still is.
        ValueError: the file to be loaded is damaged.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        if storage_options is not None or "://" in str(path):
            return super().save_checkpoint(checkpoint, path, storage_options)
        save_whole(checkpoint, path)

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        if os.path.isfile(path):
            check_intact(path)
        return super().load_checkpoint(path, *args, **kwargs)


def save_whole(content: Any, path: str | Path) -> None:
    """`torch.save`, sealed with a checksum, into a file beside `path` that takes its place when it is on the disk."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    archive = buffer.getbuffer()[:-2]  # without the length of the archive's comment, which is empty
    seal = (len(SEAL) + DIGITS).to_bytes(2, "little") + SEAL
    checksum = zlib.crc32(seal, zlib.crc32(archive))
    path = Path(os.path.realpath(path))
    part = path.with_name(path.name + ".part")  # one that a kill has left is written over
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "wb") as file:
            file.write(archive)
            file.write(b"%s%08x" % (seal, checksum))
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
        _sync_folder(path.parent)
    except OSError as error:
        part.unlink(missing_ok=True)
        state = "The file before it is as it was" if path.exists() else "No file was left"
        raise OSError(
            error.errno,
            f"Expected to write {len(archive)} bytes to {printable(str(path), 200)!r}, got: {error.strerror}. {state}. "
            "Make room there, or choose another place, for example with --trainer.default_root_dir.",
        ) from None


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":  # elsewhere folders cannot be opened
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def check_intact(path: str | Path) -> None:
    """Raises ValueError if the file's checksum is wrong: that of the whole, or in one that Lightning itself has written, those
    of the archive's members. What is no archive passes: to read it will fail."""
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - len(SEAL) - DIGITS))
        seal = file.read()
        if seal.startswith(SEAL):
            intact = seal[len(SEAL) :] == b"%08x" % _checksum(file, size - DIGITS)
        else:
            intact = not zipfile.is_zipfile(file) or _members_intact(file)
    if not intact:
        raise ValueError(
            f"Expected a checkpoint as it was written, got {printable(str(path), 200)!r}, which is damaged: its checksum is "
            "wrong. Take another one, or a copy of this one."
        )


def _checksum(file: Any, size: int) -> int:
    file.seek(0)
    checksum = 0
    while size > 0 and (block := file.read(min(size, 2**20))):
        checksum, size = zlib.crc32(block, checksum), size - len(block)
    return checksum


def _members_intact(file: Any) -> bool:
    try:
        with zipfile.ZipFile(file) as archive:
            return archive.testzip() is None and not archive.comment  # a seal that is damaged itself
    except Exception:  # of many kinds, as the damage may be
        return False
