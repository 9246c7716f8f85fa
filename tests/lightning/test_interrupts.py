"""Ctrl-C at different moments, and what is left of the run."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from manualgrad.cli.checkpoint import check_resumable
from manualgrad.cli.main import main
from tests.cli.command_runs import ENVIRONMENT


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """A shell that starts the tests in the background has them ignore Ctrl-C, and their children too."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_in_the_middle_says_how_to_go_on(tmp_path, monkeypatch):
    quiet = "--trainer.enable_progress_bar false --trainer.enable_model_summary false"
    command = [sys.executable, "-m", "manualgrad", "fit", "--trainer.max_epochs", "500", *quiet.split()]
    checkpoint = tmp_path / "lightning_logs/version_0/checkpoints/last.ckpt"
    with subprocess.Popen(command, cwd=tmp_path, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True) as process:
        while not checkpoint.exists() and process.poll() is None:
            time.sleep(0.001)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    sentence = f"manualgrad: error: Interrupted. Go on with the same options and --ckpt_path {checkpoint}\n"
    assert process.returncode == 1 and error.lstrip("\n") == sentence
    check_resumable(checkpoint)
    monkeypatch.chdir(tmp_path)
    assert main(["test", "--ckpt_path", "last", "--trainer.logger", "false", *quiet.split()]) == 0


USER_CODE = """
import signal
import sys

from manualgrad.lightning import BackpropModule, DigitsDataModule

class Interrupted(BackpropModule):
    def training_step(self, batch, batch_idx):
        signal.raise_signal(signal.SIGINT)

class Stopped(BackpropModule):
    def training_step(self, batch, batch_idx):
        sys.exit("enough")

class Data(DigitsDataModule):
    def setup(self, stage=None):
        signal.raise_signal(signal.SIGINT)
"""


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        (
            ["fit", "--model", "stopping.Interrupted"],
            1,
            "Interrupted before the first checkpoint: nothing to go on from.",
        ),
        (["fit", "--model", "stopping.Stopped"], 1, "enough"),
        (["compare", "--data", "stopping.Data"], 130, "interrupted."),
    ],
    ids=["before the first checkpoint", "by the user's own code", "outside of training"],
)
def test_an_early_end_is_one_sentence(tmp_path, monkeypatch, capsys, arguments, status, sentence):
    (tmp_path / "stopping.py").write_text(USER_CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = signal.getsignal(signal.SIGINT)  # which Lightning takes away
    try:
        assert main(arguments) == status
    finally:
        signal.signal(signal.SIGINT, before)
        sys.modules.pop("stopping", None)
    assert capsys.readouterr().err.lstrip("\n") == f"manualgrad: error: {sentence}\n"
