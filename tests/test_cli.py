import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from manualgrad.cli import COMMANDS, main


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120"}


def manualgrad(directory, *arguments, python=(sys.executable, "-W", "error", "-m", "manualgrad")):
    """`manualgrad ARGUMENTS` in a process of its own, as a user starts it; warnings are errors."""
    return subprocess.run(
        [*python, *arguments], cwd=directory, env=ENVIRONMENT, capture_output=True, text=True, timeout=120
    )


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
    assert sorted(path.name.split(".")[0] for path in logs.iterdir()) == [
        "checkpoints",
        "config",
        "events",
        "hparams",
    ]


def test_the_last_checkpoint_can_be_tested_and_predicted_with(trained):
    directory, fit = trained
    for command in ("test", "predict"):
        run = manualgrad(directory, command, "--ckpt_path", "last", "--trainer.logger", "false")
        assert (run.returncode, run.stderr) == (0, "")
        if command == "test":
            accuracy = re.search(r"test_accuracy\W+([\d.]+)", run.stdout)
            assert accuracy and f"Test accuracy: {100 * float(accuracy[1]):.1f} %" in fit.stdout
    predictions = torch.cat(torch.load(directory / "predictions.pt", weights_only=True))
    assert predictions.shape == (360,)


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


def test_users_bring_their_own_classes_and_configuration(tmp_path):
    (tmp_path / "mine.py").write_text(USER_CODE)
    (tmp_path / "mine.yaml").write_text("model: {class_path: mine.Net, init_args: {width: 5}}\ndata: mine.Data\n")
    run = manualgrad(tmp_path, "fit", "--config", "mine.yaml", "--trainer.max_epochs", "1")
    assert (run.returncode, run.stderr) == (0, "")
    assert "body.0.weight  5x4" in run.stdout and "All 6 rows ok." in run.stdout
    checkpoint = "lightning_logs/version_0/checkpoints/last.ckpt"
    mine = ["--model", "mine.Net", "--data", "mine.Data"]
    run = manualgrad(tmp_path, "compare", *mine, "--model.width", "5", "--checkpoint", checkpoint)
    assert (run.returncode, run.stderr) == (0, "")
    run = manualgrad(tmp_path, "compare", *mine, "--checkpoint", checkpoint)
    assert run.returncode == 1
    assert run.stderr.startswith(
        "manualgrad: error: The checkpoint does not fit the model. Error(s) in loading state_dict for Net: size mismatch"
    )
    run = manualgrad(tmp_path, "compare", *mine, "--model.activation", "wrong")
    assert run.returncode == 1 and "NOT ok: body.0.weight, body.0.bias, input[0]." in run.stdout
    audit = ["--trainer.callbacks+=manualgrad.lightning.AutogradAudit", "--trainer.enable_model_summary", "false"]
    run = manualgrad(tmp_path, "fit", *mine, "--model.activation", "wrong", *audit)
    assert run.returncode == 1 and run.stderr.startswith(
        "manualgrad: error: AutogradAudit expected the gradients by hand to equal autograd's at step 0 (epoch 0), got"
    )


def test_a_run_killed_in_the_middle_resumes_to_the_same_weights(tmp_path):
    checkpoints = "--trainer.callbacks+=ModelCheckpoint --trainer.callbacks.filename {step} "
    checkpoints += "--trainer.callbacks.save_top_k -1 --trainer.callbacks.every_n_train_steps 15"
    quiet = "--trainer.enable_progress_bar false --trainer.enable_model_summary false"
    options = f"fit --trainer.max_epochs 8 {checkpoints} {quiet}".split()
    command = [sys.executable, "-m", "manualgrad", *options]
    full, killed = tmp_path / "full", tmp_path / "killed"
    full.mkdir(), killed.mkdir()
    assert manualgrad(full, *options).returncode == 0

    process = subprocess.Popen(command, cwd=killed, env=ENVIRONMENT, stdout=subprocess.DEVNULL)
    while not (written := sorted(killed.rglob("step=45.ckpt"))) and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and written
    last = max(killed.rglob("*.ckpt"), key=lambda path: torch.load(path, weights_only=True)["global_step"])
    assert 45 <= torch.load(last, weights_only=True)["global_step"] < 320

    assert manualgrad(killed, *options, "--ckpt_path", str(last)).returncode == 0
    end = "checkpoints/step=315.ckpt"
    expected = weights(full / "lightning_logs/version_0" / end)
    resumed = weights(killed / "lightning_logs/version_1" / end)
    assert expected.keys() == resumed.keys()
    assert all(torch.equal(resumed[name], expected[name]) for name in expected)


def test_two_processes_train_one_model(tmp_path):
    options = "--trainer.accelerator cpu --trainer.devices 2 --trainer.strategy ddp --trainer.max_epochs 2"
    audit = "--trainer.callbacks+=manualgrad.lightning.AutogradAudit --trainer.callbacks.every_n_steps 10"
    run = manualgrad(tmp_path, "fit", *options.split(), *audit.split(), python=(sys.executable, "-m", "manualgrad"))
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("Test accuracy") == 1 and "All 5 rows ok." in run.stdout
    checkpoint = torch.load(tmp_path / "lightning_logs/version_0/checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 2 * 20  # each process sees half of the 40 batches


def without(package, tmp_path):
    """A Python whose packages are the installed ones without `package`, as in an environment where it is missing."""
    packages = tmp_path / "packages"
    packages.mkdir()
    for directory in map(Path, sys.path):
        if directory.name == "site-packages":
            for entry in directory.iterdir():
                hidden = entry.name.startswith((package, f"{package.replace('_', '-')}", "__pycache__"))
                if not hidden and entry.suffix not in (".pth", ".egg-link") and not (packages / entry.name).exists():
                    (packages / entry.name).symlink_to(entry)
    if not (packages / "manualgrad").exists():
        import manualgrad as installed

        (packages / "manualgrad").symlink_to(Path(installed.__file__).parent)
    start = f"import sys; sys.path.append({str(packages)!r}); from manualgrad.cli import main; sys.exit(main())"
    return sys.executable, "-S", "-c", start


@pytest.mark.parametrize(
    ("package", "purpose", "extra"),
    [("lightning", "manualgrad.lightning", "lightning"), ("sklearn", "DigitsDataModule", "demo")],
)
def test_a_missing_extra_names_the_pip_command(tmp_path, package, purpose, extra):
    run = manualgrad(tmp_path, "fit", python=without(package, tmp_path))
    assert run.returncode == 1
    assert run.stderr == (
        f"manualgrad: error: {purpose} expected the package `{package}`, which is not installed. "
        f'Install it with: python -m pip install "manualgrad[{extra}]"\n'
    )


def test_help_lists_every_command(capsys):
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    for name, command in COMMANDS.items():
        assert f"  {name} " in printed and command.summary in printed
    assert main([]) == 2


def test_help_imports_nothing_optional():
    code = "import sys; from manualgrad.cli import main; main(['--help']); print({'lightning', 'jsonargparse'} & {*sys.modules})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.endswith("set()\n")


def test_version(capsys):
    from manualgrad import __version__

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"manualgrad {__version__}\n"


def test_print_config_shows_every_default(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--print_config"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    for line in ("max_epochs: 20", "manualgrad.lightning.BackpropModule", "lr_schedule: cosine", "batch_size: 32"):
        assert line in printed


NOT_A_CHECKPOINT = (
    "Pass {which}that `manualgrad fit` has written, for example lightning_logs/version_0/checkpoints/last.ckpt."
)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["bake"],
            f"expected a command, got 'bake'. Known: {', '.join(COMMANDS)}.",
        ),
        (
            ["fit", "--model.activation", "cub"],
            "Unknown activation 'cub'. Known: identity, relu, leaky_relu, elu, sigmoid, tanh, softplus, gelu, gelu_tanh, silu. "
            "Define your own with mg.Activation('cub', value=..., derivative=...).",
        ),
        (
            ["fit", "--model.lr", "-1"],
            "Invalid learning rate: -1.0. Expected a finite number >= 0, for example lr=0.1.",
        ),
        (
            ["fit", "--model.loss", "huber"],
            'Parser key "model": Problem with given class_path \'manualgrad.lightning.BackpropModule\': Parser key "loss": '
            "Expected a typing.Literal['quadratic', 'cross_entropy', 'binary_cross_entropy']. Got value: huber",
        ),
        (["fit", "--bogus", "3"], "unrecognized arguments: --bogus 3"),
        (["compare", "--bogus"], "unrecognized arguments: --bogus"),
        (
            ["test", "--ckpt_path", "nowhere.ckpt"],
            "Expected the path of a checkpoint, got 'nowhere.ckpt', which is no file. "
            + NOT_A_CHECKPOINT.format(which="one "),
        ),
        (
            ["compare", "--checkpoint", "text.ckpt"],
            "Expected a checkpoint that Lightning wrote, got 'text.ckpt', which is not one. "
            + NOT_A_CHECKPOINT.format(which="a file "),
        ),
        (
            ["fit", "--ckpt_path", "tensor.ckpt"],
            "Expected a checkpoint that Lightning wrote, got 'tensor.ckpt', which is not one. "
            + NOT_A_CHECKPOINT.format(which="a file "),
        ),
        (
            ["fit", "--ckpt_path", "last"],
            "Expected a checkpoint of an earlier run below lightning_logs, found none. "
            "Pass the path of one, or leave --ckpt_path out.",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_done_is_one_sentence(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    Path("text.ckpt").write_text("root:x:0:0:root:/root:/bin/bash\n")
    torch.save(torch.zeros(2), "tensor.ckpt")
    assert main(arguments) > 0
    assert capsys.readouterr().err == f"manualgrad: error: {message}\n"
    assert not Path("lightning_logs").exists()
