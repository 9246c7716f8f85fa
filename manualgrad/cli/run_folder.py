"""A folder for each run's logs and checkpoints, even if two runs start at the same moment."""

import os
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.utilities import rank_zero_only

from manualgrad.lightning.checkpoint_io import SafeCheckpointIO


RECORD = "lightning_logs/last_checkpoint"  # a file with the path of the newest one, wherever the user has them written


class RecordingCheckpointIO(SafeCheckpointIO):
    """Writes the path of each checkpoint into `RECORD`, for `--ckpt_path last`."""

    def __init__(self, root: str | Path) -> None:
        self._record = None if "://" in str(root) else Path(root) / RECORD

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        super().save_checkpoint(checkpoint, path, storage_options)
        if self._record is not None and "://" not in str(path):
            self._record.parent.mkdir(parents=True, exist_ok=True)
            part = self._record.with_suffix(".part")
            part.write_text(os.path.abspath(path))
            os.replace(part, self._record)


def last_checkpoint(root: str | Path) -> Path:
    """The newest checkpoint of the runs in this folder: of those in the places that Lightning chooses, and the recorded one.

    Raises FileNotFoundError if there is none.
    """
    root = Path(root)
    found = [*root.glob("lightning_logs/version_*/checkpoints/*.ckpt"), *root.glob("checkpoints/*.ckpt")]
    if (root / RECORD).is_file():
        found += filter(Path.is_file, [Path((root / RECORD).read_text())])
    if not found:
        raise FileNotFoundError(
            f"Expected a checkpoint of an earlier run below {root / 'lightning_logs'}, found none. "
            "Pass the path of one, or leave --ckpt_path out."
        )
    return max(found, key=lambda path: path.stat().st_mtime_ns)


def check_writable(folder: str | Path) -> None:
    """Raises OSError unless files can be written in the folder, or in the nearest one above it that exists. URLs pass."""
    if "://" in str(folder):
        return
    path = Path(folder).absolute()
    nearest = next(place for place in (path, *path.parents) if os.path.exists(place))
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        reason = "may not be written" if nearest.is_dir() else "is no folder"
        raise OSError(
            f"Expected a folder in which logs and checkpoints can be written, got {str(folder)!r}: {str(nearest)!r} {reason}. "
            "Pass another with --trainer.default_root_dir."
        )


def claim_folder(trainer: Trainer) -> None:
    """Give the trainer's own logger the next free `lightning_logs/version_N`, made here and now.

    Lightning chooses the number first and makes the folder only when it first writes: two runs that start together choose
    the same number and overwrite each other's checkpoints. Only the first process of a run makes the folder; Lightning
    tells the others. Under SLURM the number is that of the job.
    """
    logger, root = trainer.logger, trainer.default_root_dir
    if getattr(rank_zero_only, "rank", 0) != 0 or SLURMEnvironment.job_id() is not None or "://" in root:
        return
    assert isinstance(logger, CSVLogger | TensorBoardLogger)
    logs = Path(root) / str(logger.name)
    logs.mkdir(parents=True, exist_ok=True)
    taken = [int(path.name[8:]) for path in logs.glob("version_*") if path.name[8:].isdecimal()]
    version = max(taken, default=-1) + 1
    while True:
        try:
            (logs / f"version_{version}").mkdir()
            break
        except FileExistsError:  # by a run that has started at the same moment
            version += 1
    trainer.logger = type(logger)(root, version=version)
