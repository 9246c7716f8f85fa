import os
import re
import subprocess
import sys

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger

from manualgrad.cli.run_folder import check_writable, claim_folder, last_checkpoint
from tests.cli.command_runs import ENVIRONMENT


def test_two_runs_started_at_once_keep_a_checkpoint_each(tmp_path):
    options = "--trainer.max_epochs 1 --trainer.limit_train_batches 3 --trainer.enable_model_summary false"
    command = [sys.executable, "-m", "manualgrad", "fit", *options.split(), "--seed_everything"]
    runs = [
        subprocess.Popen([*command, str(seed)], cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
        for seed in (1, 2)
    ]
    printed = [run.communicate(timeout=120)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    paths = [path for out in printed for path in re.findall(r"^Checkpoint: (.*)$", out, re.M)]
    logs = tmp_path / "lightning_logs"
    assert sorted(paths) == [str(logs / f"version_{n}" / "checkpoints" / "last.ckpt") for n in (0, 1)]
    first, second = (torch.load(path, weights_only=True)["state_dict"]["model.0.weight"] for path in paths)
    assert not torch.equal(first, second)
    assert {path.name for path in logs.glob("*/config.yaml")} == {"config.yaml"} and len([*logs.glob("*/events*")]) == 4
    assert last_checkpoint(tmp_path) == max(logs.glob("*/*/last.ckpt"), key=lambda path: path.stat().st_mtime)


@pytest.mark.parametrize("logger", [True, CSVLogger], ids=["TensorBoard", "CSV"])
def test_a_folder_is_claimed_before_anything_is_written(tmp_path, logger):
    (tmp_path / "lightning_logs" / "version_7").mkdir(parents=True)
    (tmp_path / "lightning_logs" / "version_old").mkdir()
    trainers = [
        Trainer(default_root_dir=tmp_path, logger=logger if logger is True else logger(tmp_path)) for _ in range(2)
    ]
    for trainer in trainers:
        claim_folder(trainer)
    assert [trainer.log_dir for trainer in trainers] == [
        str(tmp_path / "lightning_logs" / f"version_{n}") for n in (8, 9)
    ]


def test_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").touch()
    (folder := tmp_path / "folder").mkdir(mode=0o555)
    for place, nearest, reason in (
        (tmp_path / "file" / "runs", tmp_path / "file", "is no folder"),
        (folder / "runs", folder, "may not be written"),
    ):
        if os.getuid() == 0 and nearest == folder:
            os.setreuid(65534, 0)  # root may write anywhere: ask as somebody else
        try:
            with pytest.raises(OSError) as error:
                check_writable(place)
        finally:
            if os.geteuid() == 0:
                os.setreuid(0, 0)
        assert str(error.value) == (
            f"Expected a folder in which logs and checkpoints can be written, got {str(place)!r}: {str(nearest)!r} {reason}. "
            "Pass another with --trainer.default_root_dir."
        )
    check_writable(tmp_path / "new" / "runs")
    check_writable("s3://bucket/runs")
