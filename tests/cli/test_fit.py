import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from manualgrad.cli.main import main
from tests.cli.command_runs import ENVIRONMENT, manualgrad


def weights(checkpoint):
    return torch.load(checkpoint, weights_only=True)["state_dict"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The directory of `manualgrad fit` with no arguments, and what it printed."""
    directory = tmp_path_factory.mktemp("fit")
    return directory, manualgrad(directory, "fit")


def test_fit_alone_learns_the_digits_and_says_so(trained):
    directory, run = trained
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    accuracy = re.search(r"^Test accuracy: ([\d.]+) %$", run.stdout, re.M)
    assert accuracy and float(accuracy[1]) >= 97
    assert "Epoch 19/19" in run.stdout
    assert "All 5 rows ok." in run.stdout
    logs = directory / "lightning_logs" / "version_0"
    assert f"Logs:       {logs}\n" in run.stdout
    assert f"Checkpoint: {logs / 'checkpoints' / 'last.ckpt'}\n" in run.stdout
    assert {path.name.split(".")[0] for path in logs.iterdir()} == {"checkpoints", "config", "events", "hparams"}


def test_the_last_checkpoint_can_be_tested_and_predicted_with(trained, monkeypatch, capsys):
    directory, fit = trained
    monkeypatch.chdir(directory)
    assert main(["test", "--ckpt_path", "last", "--trainer.logger", "false"]) == 0
    accuracy = re.search(r"test_accuracy\W+([\d.]+)", capsys.readouterr().out)
    assert accuracy and f"Test accuracy: {100 * float(accuracy[1]):.1f} %" in fit.stdout
    assert main(["predict", "--ckpt_path", "last", "--trainer.logger", "false"]) == 0
    assert f"Predictions: {directory / 'predictions.pt'}" in capsys.readouterr().out
    assert torch.cat(torch.load("predictions.pt", weights_only=True)).shape == (360,)


def test_compare_a_checkpoint_and_a_fresh_model(trained, tmp_path, monkeypatch, capsys):
    directory, _ = trained
    checkpoint = directory / "lightning_logs/version_0/checkpoints/last.ckpt"
    monkeypatch.chdir(tmp_path)
    assert main(["compare", "--checkpoint", str(checkpoint), "--json", "comparison.json"]) == 0
    assert f"for {checkpoint}:" in capsys.readouterr().out
    assert main(["compare", "--model.sizes", "[64,7,10]", "--model.activation", "gelu"]) == 0
    printed = capsys.readouterr().out
    assert "for a fresh model" in printed and "model.0.weight  7x64" in printed and "All 5 rows ok." in printed
    report = json.loads(Path("comparison.json").read_text())
    assert report["ok"] and len(report["rows"]) == 5


USER_CODE = """
import torch
from lightning.pytorch import LightningDataModule, LightningModule
import manualgrad as mg

mg.Activation("wrong", value=lambda z: z**2, derivative=lambda z: z)

class Net(LightningModule):
    def __init__(self, width: int = 8, activation: str = "tanh"):
        super().__init__()
        self.body = torch.nn.Sequential(mg.Dense(4, width, activation=activation), torch.nn.Dropout(0.5), mg.Dense(width, 1))

    def training_step(self, batch, batch_idx):
        return mg.QuadraticLoss()(self.body(batch["x"]), batch["y"])

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters())

class Data(LightningDataModule):
    def train_dataloader(self):
        x = torch.randn(64, 4)
        return torch.utils.data.DataLoader([{"x": row, "y": row[:1]} for row in x], 8, num_workers=2)
"""


MINE = ["--model", "mine.Net", "--data", "mine.Data"]


@pytest.fixture
def user_code(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(USER_CODE)
    (tmp_path / "mine.yaml").write_text("model: {class_path: mine.Net, init_args: {width: 5}}\ndata: mine.Data\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    sys.modules.pop("mine", None)


def test_users_bring_their_own_classes_and_configuration(user_code, capsys):
    assert main(["fit", "--config", "mine.yaml", "--trainer.max_epochs", "1"]) == 0
    printed = capsys.readouterr().out
    assert "body.0.weight  5x4" in printed and "All 6 rows ok." in printed
    checkpoint = ["--checkpoint", "lightning_logs/version_0/checkpoints/last.ckpt"]
    assert main(["compare", *MINE, "--model.width", "5", *checkpoint]) == 0
    assert main(["compare", *checkpoint]) == 0  # it knows its class and width
    content = torch.load(checkpoint[1], weights_only=True)
    del content["manualgrad.options"]  # as in one that Python code has saved
    torch.save(content, checkpoint[1])
    capsys.readouterr()
    mismatch = (
        "size mismatch for body.{}: copying a param with shape {} from checkpoint, the shape in current model is {}."
    )
    for command in (["compare", *MINE, *checkpoint], ["fit", *MINE, "--ckpt_path", checkpoint[1]]):
        assert main(command) == 1
        assert capsys.readouterr().err == (
            "manualgrad: error: The checkpoint does not fit the model. Error(s) in loading state_dict for Net: "
            + mismatch.format("0.weight", "torch.Size([5, 4])", "torch.Size([8, 4])")
            + " "
            + mismatch.format("0.bias", "torch.Size([5])", "torch.Size([8])")
            + " "
            + mismatch.format("2.weight", "torch.Size([1, 5])", "torch.Size([1, 8])")
            + "\n"
        )


def test_a_wrong_derivative_fails(user_code, capsys):
    wrong = [*MINE, "--model.activation", "wrong"]
    assert main(["compare", *wrong]) == 1
    assert "NOT ok: body.0.weight, body.0.bias, input[0]." in capsys.readouterr().out
    assert main(["fit", *wrong, "--trainer.max_epochs", "1"]) == 1
    ended = capsys.readouterr()
    assert "NOT ok: body.0.weight, body.0.bias, input[0]." in ended.out and "Checkpoint: " in ended.out
    assert ended.err == (
        "manualgrad: error: The training has ended, but gradients by hand differ from autograd's by more than rounding "
        "in body.0.weight, body.0.bias, input[0]. Check the derivative of an activation or loss.\n"
    )
    assert main(["fit", *wrong, "--trainer.callbacks+=manualgrad.lightning.AutogradAudit"]) == 1
    assert capsys.readouterr().err.startswith(
        "manualgrad: error: AutogradAudit expected the gradients by hand to equal autograd's at step 0 (epoch 0), got"
    )


def test_a_run_killed_in_the_middle_resumes_to_the_same_weights(tmp_path, monkeypatch):
    checkpoints = "--trainer.callbacks+=ModelCheckpoint --trainer.callbacks.filename {step} "
    checkpoints += "--trainer.callbacks.save_top_k -1 --trainer.callbacks.every_n_train_steps 16"
    quiet = "--trainer.enable_progress_bar false --trainer.enable_model_summary false"
    options = f"fit --trainer.max_epochs 8 {checkpoints} {quiet}".split()
    command = [sys.executable, "-m", "manualgrad", *options]
    full, killed = tmp_path / "full", tmp_path / "killed"
    full.mkdir(), killed.mkdir()
    monkeypatch.chdir(full)
    assert main(options) == 0

    process = subprocess.Popen(command, cwd=killed, env=ENVIRONMENT, stdout=subprocess.DEVNULL)
    while not (written := sorted(killed.rglob("step=48.ckpt"))) and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and written

    def step(path):
        return torch.load(path, weights_only=True)["global_step"]

    last = max(killed.rglob("*.ckpt"), key=step)
    assert 48 <= step(last) < 320
    monkeypatch.chdir(killed)
    assert main([*options, "--ckpt_path", str(last)]) == 0
    end = "checkpoints/step=320.ckpt"  # the last step of eight epochs of 40
    expected = weights(full / "lightning_logs/version_0" / end)
    resumed = weights(killed / "lightning_logs/version_1" / end)
    assert expected.keys() == resumed.keys()
    assert all(torch.equal(resumed[name], expected[name]) for name in expected)


def test_two_processes_train_one_model(tmp_path):
    options = "--trainer.accelerator cpu --trainer.devices 2 --trainer.strategy ddp --trainer.max_epochs 1"
    audit = "--trainer.callbacks+=manualgrad.lightning.AutogradAudit --trainer.callbacks.every_n_steps 10"
    run = manualgrad(tmp_path, "fit", *options.split(), *audit.split(), python=(sys.executable, "-m", "manualgrad"))
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("Test accuracy") == 1 and "All 5 rows ok." in run.stdout
    checkpoint = torch.load(tmp_path / "lightning_logs/version_0/checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 20  # each process sees half of the 40 batches
    assert len(checkpoint["manualgrad.random_states"]) == 2
