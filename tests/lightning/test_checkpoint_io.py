"""Checkpoint files are whole or not there, and damaged ones are refused."""

from __future__ import annotations

import errno
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

import manualgrad as mg
from manualgrad.activation.built_in import leaky_relu
from manualgrad.cli.main import main
from manualgrad.lightning import BackpropModule, DigitsDataModule, SafeCheckpointIO
from manualgrad.lightning.checkpoint_io import check_intact, save_whole
from tests.cli.command_runs import ENVIRONMENT
from tests.lightning.runs import quiet_trainer, weights
from tests.lightning.small_fits import CLASSES, FEATURES, fit


CONTENT = {"state_dict": {f"{i}.weight": torch.arange(300.0).view(30, 10) + i for i in range(4)}, "epoch": 3}
DAMAGED = (
    "Expected a checkpoint as it was written, got {path!r}, which is damaged: its checksum is wrong. "
    "Take another one, or a copy of this one."
)


def same(loaded: Any) -> bool:
    ours, theirs = loaded["state_dict"], CONTENT["state_dict"]
    assert isinstance(theirs, dict)
    return loaded["epoch"] == 3 and all(torch.equal(ours[name], theirs[name]) for name in theirs)


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_a_sealed_file_is_one_that_torch_loads(tmp_path: Path) -> None:
    save_whole(CONTENT, tmp_path / "deep" / "x.ckpt")
    check_intact(tmp_path / "deep" / "x.ckpt")
    assert same(torch.load(tmp_path / "deep" / "x.ckpt", weights_only=True))
    assert same(torch.load(tmp_path / "deep" / "x.ckpt", weights_only=True, mmap=True))
    assert zipfile.ZipFile(tmp_path / "deep" / "x.ckpt").testzip() is None
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["x.ckpt"]


def test_of_200_flipped_bits_none_is_accepted(tmp_path: Path) -> None:
    save_whole(CONTENT, path := tmp_path / "x.ckpt")
    data, draw = path.read_bytes(), random.Random(0)
    for bit in [*draw.sample(range(8 * len(data)), 150), *range(8 * len(data) - 50, 8 * len(data))]:
        path.write_bytes(flipped(data, bit))
        with pytest.raises(ValueError) as error:
            check_intact(path)
        assert str(error.value) == DAMAGED.format(path=str(path))


def test_of_files_by_lightning_itself_none_loads_other_weights(tmp_path: Path) -> None:
    path, draw, refused = tmp_path / "x.ckpt", random.Random(1), 0
    torch.save(CONTENT, path)
    check_intact(path)
    data = path.read_bytes()
    for bit in draw.sample(range(8 * len(data)), 200):
        path.write_bytes(flipped(data, bit))
        try:
            check_intact(path)
            loaded = torch.load(path, weights_only=True)
        except Exception:  # ours, or torch's of many kinds
            refused += 1
        else:
            assert same(loaded)  # a bit that means nothing, such as one in a padding
    assert refused > 150


@pytest.mark.parametrize("command", [["fit", "--ckpt_path"], ["test", "--ckpt_path"], ["compare", "--checkpoint"]])
def test_the_command_line_refuses_it(tmp_path: Path, monkeypatch: Any, capsys: Any, command: list[str]) -> None:
    monkeypatch.chdir(tmp_path)
    save_whole(CONTENT, path := tmp_path / "x.ckpt")
    path.write_bytes(flipped(path.read_bytes(), 5000))
    assert main([*command, "x.ckpt"]) == 1
    assert capsys.readouterr().err == f"manualgrad: error: {DAMAGED.format(path='x.ckpt')}\n"


def test_the_trainer_refuses_it_too(tmp_path: Path) -> None:
    module, safe = BackpropModule((FEATURES, CLASSES)), SafeCheckpointIO()
    path = tmp_path / "x.ckpt"
    fit(tmp_path, module, plugins=[safe], max_epochs=1).save_checkpoint(path)
    path.write_bytes(flipped(path.read_bytes(), 7777))
    for load in (
        lambda: fit(tmp_path, module, path, plugins=[safe], max_epochs=2),
        lambda: BackpropModule.load_from_checkpoint(path, weights_only=True),
    ):
        with pytest.raises(ValueError, match="which is damaged: its checksum is wrong"):
            load()


def test_a_full_disk_leaves_the_file_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit on the size of files stands for the disk."""
    monkeypatch.setattr(signal, "SIGXFSZ", signal.signal(signal.SIGXFSZ, signal.SIG_IGN))
    save_whole(CONTENT, path := tmp_path / "x.ckpt")
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for target, state in ((path, "The file before it is as it was"), (tmp_path / "new.ckpt", "No file was left")):
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, limits[1]))
        try:
            with pytest.raises(OSError) as error:
                save_whole({**CONTENT, "epoch": 4}, target)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert error.value.errno == errno.EFBIG
        assert re.fullmatch(
            rf"Expected to write \d+ bytes to '{target}', got: File too large. {state}. Make room there, or choose another "
            r"place, for example with --trainer.default_root_dir.",
            str(error.value.strerror),
        )
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["x.ckpt"]


def test_a_link_is_followed_and_a_leftover_written_over(tmp_path: Path) -> None:
    (tmp_path / "x.ckpt.part").write_bytes(b"of a kill")
    (tmp_path / "link.ckpt").symlink_to(tmp_path / "x.ckpt")
    save_whole(CONTENT, tmp_path / "link.ckpt")
    assert (tmp_path / "link.ckpt").is_symlink() and same(torch.load(tmp_path / "x.ckpt", weights_only=True))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.ckpt", "x.ckpt"]


WRITER = """
import sys, torch
from manualgrad.lightning.checkpoint_io import save_whole
torch.set_num_threads(1)
for epoch in range(10**6):
    save_whole({"epoch": epoch, "w": torch.full((2**21,), float(epoch))}, sys.argv[1])
"""


def test_kills_while_it_is_written_with_temporary_files_on_another_disk(tmp_path: Path) -> None:
    shared = Path("/dev/shm")
    if not shared.is_dir() or shared.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs a second file system")
    draw, path = random.Random(0), tmp_path / "last.ckpt"
    for _ in range(3):
        path.unlink(missing_ok=True)
        command = [sys.executable, "-c", WRITER, str(path)]
        process = subprocess.Popen(command, env={**ENVIRONMENT, "TMPDIR": str(shared)})
        while not path.exists() and process.poll() is None:
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        check_intact(path)
        loaded = torch.load(path, weights_only=True)
        assert (loaded["w"] == loaded["epoch"]).all()


def test_a_run_with_it_resumes_bit_for_bit(tmp_path: Path) -> None:
    def run(ckpt_path: Path | None = None) -> torch.Tensor:
        torch.manual_seed(0)
        model = BackpropModule((64, 8, 10))
        callbacks = [ModelCheckpoint(tmp_path / "kept", filename="{step}", every_n_train_steps=7, save_top_k=-1)]
        options: dict[str, Any] = {
            "plugins": [SafeCheckpointIO()],
            "enable_checkpointing": True,
            "callbacks": callbacks,
        }
        quiet_trainer(tmp_path, **options).fit(
            model, datamodule=DigitsDataModule(), ckpt_path=ckpt_path, weights_only=True
        )
        return weights(model)

    whole = run()
    saved = Path(shutil.copy(tmp_path / "kept" / "step=14.ckpt", tmp_path))
    shutil.rmtree(tmp_path / "kept")
    check_intact(saved)
    assert torch.equal(run(saved), whole)


@pytest.mark.parametrize("activation", [mg.activations["gelu"], leaky_relu(0.3)], ids=str)
def test_objects_of_ours_among_the_hyperparameters_load(tmp_path: Path, activation: Any) -> None:
    class WithLoss(BackpropModule):
        def __init__(self, criterion: Any = None, **options: Any) -> None:
            super().__init__(**options)

    losses = [mg.QuadraticLoss(), mg.SoftmaxCrossEntropyLoss(), mg.BinaryCrossEntropyLoss()]
    module = WithLoss(losses, sizes=(FEATURES, 4, CLASSES), activation=activation)
    fit(tmp_path, module, max_epochs=1).save_checkpoint(tmp_path / "x.ckpt")
    loaded = WithLoss.load_from_checkpoint(tmp_path / "x.ckpt", weights_only=True)
    assert torch.equal(weights(loaded), weights(module).float())
    assert repr(loaded.model[0].activation) == repr(activation)
    assert [type(loss) for loss in loaded.hparams["criterion"]] == [type(loss) for loss in losses]


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("mount") is None, reason="needs to mount a small file system")
def test_a_disk_that_fills_up_during_a_run(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    (disk := tmp_path / "disk").mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("may not mount")
    try:
        monkeypatch.chdir(disk)
        quiet = (
            "--trainer.enable_progress_bar false --trainer.enable_model_summary false --trainer.logger false".split()
        )
        assert main(["fit", "--trainer.max_epochs", "1", *quiet]) == 0
        checkpoint = disk / "checkpoints" / "last.ckpt"
        before = checkpoint.read_bytes()
        (disk / "filler").write_bytes(bytes(400 * 1024 - len(before) - 60 * 1024))
        capsys.readouterr()
        assert main(["fit", "--trainer.max_epochs", "2", "--ckpt_path", "last", *quiet]) == 1
        error = capsys.readouterr().err
        assert re.search(
            r"^manualgrad: error: .*No space left on device\. The file before it is as it was", error, re.M
        )
        assert checkpoint.read_bytes() == before
        check_intact(checkpoint)
    finally:
        monkeypatch.chdir(tmp_path)
        subprocess.run(["umount", str(disk)], check=True)
