"""Nothing that was typed is overruled: not by defaults of ours, not by a checkpoint."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer

from manualgrad.cli.main import main
from manualgrad.cli.options import typed
from tests.cli.user_code import MINE, OWN, QUIET, SHORT, folder, noted


__all__ = ["folder"]

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning")  # hints for the user's own data

NET = {"sizes": 3, "lr": 0.01, "momentum": 0.25, "loss": "own", "engine": 5}
DATA = {"batch_size": 7, "seed": 3, "num_workers": 0}
CHECKPOINT = "lightning_logs/version_0/checkpoints/last.ckpt"


def error(capsys: Any, *arguments: str) -> str:
    capsys.readouterr()
    assert main(arguments) == 1
    return capsys.readouterr().err.removeprefix("manualgrad: error: ").rstrip("\n")


def test_classes_of_ones_own_keep_their_defaults(folder: Path) -> None:
    assert noted("fit", *OWN, *SHORT) == [DATA, NET]
    assert noted("compare", *OWN) == [DATA, NET]
    assert noted("fit", *SHORT, "--data=mine.Data", "--model.class_path=mine.Net", "--model.lr", "0.5") == [
        DATA,
        {**NET, "lr": 0.5},
    ]


def test_a_subclass_of_ours_keeps_its_defaults(folder: Path) -> None:
    slow = {"sizes": (4, 2), "lr": 0.03, "lr_schedule": "constant"}
    assert noted("fit", "--model", "mine.Slow", "--data", "mine.Classes", *SHORT) == [DATA, slow]


def test_a_config_file_keeps_them_too(folder: Path) -> None:
    Path("c.yaml").write_text("model: mine.Net\ndata: {class_path: mine.Data, init_args: {seed: 9}}\n")
    assert noted("fit", "--config", "c.yaml", *SHORT) == [{**DATA, "seed": 9}, NET]
    assert noted("fit", "--config=c.yaml", "--model.sizes", "2", *SHORT) == [{**DATA, "seed": 9}, {**NET, "sizes": 2}]
    assert noted("compare", "--config", "c.yaml") == [{**DATA, "seed": 9}, NET]


def test_a_limit_that_was_typed_is_not_cut_at_our_twenty_epochs(folder: Path) -> None:
    assert main(["fit", *OWN, *QUIET, "--trainer.max_steps", "70"]) == 0  # 3 steps in an epoch
    assert torch.load(CHECKPOINT, weights_only=True)["global_step"] == 70


def test_barebones_trains(folder: Path) -> None:
    assert main(["fit", *OWN, "--trainer.barebones", "true", "--trainer.max_epochs", "1"]) == 0


def test_the_checkpoint_knows_its_classes_and_options(folder: Path, capsys: Any) -> None:
    options = ["--model.sizes", "5", "--data.batch_size", "6"]
    assert main(["fit", *OWN, *options, *SHORT]) == 0
    net, data = {**NET, "sizes": 5}, {**DATA, "batch_size": 6}
    assert noted("compare", "--checkpoint", CHECKPOINT) == [data, net]
    assert noted("test", "--ckpt_path", CHECKPOINT, *QUIET, "--trainer.logger", "false") == [data, net]
    assert noted("compare", "--config", "lightning_logs/version_0/config.yaml") == [data, net]
    assert "Not used here, from the options of a training: trainer, seed_everything" in capsys.readouterr().out
    again = noted("fit", "--ckpt_path", CHECKPOINT, *QUIET, "--trainer.max_epochs", "2", "--data", "mine.Other")
    assert again == [DATA, net]  # other data, whose options are its own
    assert noted("fit", *OWN, *options, "--ckpt_path", CHECKPOINT, *QUIET, "--trainer.max_epochs", "2") == [data, net]


@pytest.mark.parametrize("model", ["mine.Net", "mine.WithHyperparameters"])
def test_options_beside_a_checkpoint_are_refused_where_it_would_overrule_them(
    folder: Path, capsys: Any, model: str
) -> None:
    assert main(["fit", "--model", model, "--data", "mine.Data", *SHORT]) == 0
    for command, option, value, kept in (
        ("fit", "model.lr", "0.001", "0.01"),
        ("fit", "seed_everything", "5", "0"),
        ("test", "model.sizes", "9", "3"),
    ):
        assert error(capsys, command, "--ckpt_path", CHECKPOINT, f"--{option}", value, *QUIET) == (
            f"Expected the options that the checkpoint was saved with, got --{option} {value}, where it has {kept}. Leave them "
            "out; or to go on from its weights with other options, in Python: load_from_checkpoint(path, option=...) of the "
            "model's class."
        )
    Path("c.yaml").write_text("model: {init_args: {lr: 0.7}, class_path: " + model + "}\n")
    assert "got --model.lr 0.7, where it has 0.01." in error(
        capsys, "fit", "--config", "c.yaml", "--ckpt_path", CHECKPOINT, *QUIET
    )
    assert "got --model.sizes 9," in error(capsys, "compare", "--checkpoint", CHECKPOINT, "--model.sizes", "9")


def test_a_class_that_has_moved_takes_its_old_options(folder: Path) -> None:
    assert main(["fit", *OWN, "--model.sizes", "5", *SHORT]) == 0
    Path("moved.py").write_text(MINE)
    assert noted("compare", "--checkpoint", CHECKPOINT, "--model", "moved.Net") == [DATA, {**NET, "sizes": 5}]


def test_a_checkpoint_that_does_not_say_its_class(folder: Path, capsys: Any) -> None:
    import mine  # type: ignore[import-not-found]

    trainer = Trainer(max_epochs=1, logger=False, enable_progress_bar=False, enable_model_summary=False)
    trainer.fit(mine.Net(), mine.Data())
    trainer.save_checkpoint("by_python.ckpt")
    assert error(capsys, "test", "--ckpt_path", "by_python.ckpt") == (
        "Expected --model with the class of what is in the checkpoint, which does not say it. "
        "Pass for example --model mine.Net --data mine.Data, with the options that they had."
    )
    assert main(["test", *OWN, "--ckpt_path", "by_python.ckpt", *QUIET, "--trainer.logger", "false"]) == 0
    assert main(["compare", *OWN, "--checkpoint", "by_python.ckpt"]) == 0


@pytest.mark.parametrize(
    "newest",
    [
        ["--trainer.logger", "false"],
        ["--trainer.callbacks", "ModelCheckpoint", "--trainer.callbacks.filename", "{step}"],
        ["--trainer.callbacks", "ModelCheckpoint", "--trainer.callbacks.dirpath", "elsewhere/deep/down"],
        ["--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", "logs"],
    ],
    ids=["logged nothing", "its own file name", "its own folder", "its own logger"],
)
def test_last_is_the_newest_and_said(folder: Path, capsys: Any, newest: list[str]) -> None:
    assert main(["fit", *OWN, *SHORT]) == 0
    time.sleep(0.01)
    capsys.readouterr()
    assert main(["fit", *OWN, *SHORT, *newest]) == 0
    path = Path(capsys.readouterr().out.rpartition("Checkpoint: ")[2].strip()).resolve()
    assert path != Path(CHECKPOINT).resolve()
    assert main(["test", "--ckpt_path", "last", *QUIET, "--trainer.logger", "false"]) == 0
    used = capsys.readouterr().out.partition("Using ")[2].partition("\n")[0]
    assert Path(used).resolve() == path


def test_what_was_typed() -> None:
    arguments = ["--model.lr", "1", "--model=a.B", "--config", "data: {class_path: c.D}", "--trainer.max_steps=5"]
    assert typed(arguments, "model") == "a.B" and typed(arguments, "data") == "c.D"
    assert typed(arguments, "trainer.max_steps") == "5" and typed(arguments, "ckpt_path") is None
    assert typed([*arguments, "-c", "nowhere.yaml", "--model.class_path", "e.F"], "model") == "e.F"
    assert typed(["--config", "{"], "model") is None and typed(["--config"], "model") is None


def test_somebody_elses_module_trains_by_hand_and_is_compared(folder: Path, capsys: Any) -> None:
    demos = "lightning.pytorch.demos.boring_classes"
    arguments = f"--model {demos}.BoringModel --data {demos}.BoringDataModule --trainer.callbacks "
    arguments += "manualgrad.lightning.HandWrittenBackprop --trainer.callbacks.audit_every_n_steps 3 "
    arguments += "--trainer.max_epochs 1 --trainer.limit_train_batches 5 --trainer.enable_model_summary false"
    assert main(["fit", *arguments.split()]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"All \d rows ok\.", printed) and "nothing is by hand" not in printed
    checkpoint = torch.load(next(folder.glob("lightning_logs/version_*/checkpoints/last.ckpt")), weights_only=True)
    assert checkpoint["state_dict"].keys() == {"layer.weight", "layer.bias"}
