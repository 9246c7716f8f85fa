"""`manualgrad compare`: gradients by hand beside autograd's, for a checkpoint or a fresh model."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser
from lightning.pytorch import LightningDataModule, LightningModule, seed_everything

from manualgrad.cli.checkpoint import read_checkpoint
from manualgrad.cli.fit import first_batch, prepare, user_errors
from manualgrad.cli.options import before_typed, check_unchanged, saved_options, typed
from manualgrad.lightning.step_comparison import compare_training_step


OF_A_TRAINING = "trainer seed_everything optimizer lr_scheduler ckpt_path weights_only verbose".split()
CLASSES = ("model", "data")


def compare(arguments: Sequence[str]) -> int:
    """Print the comparison for the first training batch. Returns 0 if every row is ok, else 1."""
    prepare()
    about = "Set gradients by hand beside autograd's."
    parser = ArgumentParser(prog="manualgrad compare", description=about, exit_on_error=False)
    of_config = "A YAML file with these options, or with those of a training."
    parser.add_argument("--config", action="config", help=of_config)
    parser.add_argument("--checkpoint", type=str | None, help="Compare the model in it; else a fresh one.")
    parser.add_argument("--seed", type=int, default=0, help="Of a fresh model's weights.")
    parser.add_argument("--json", type=str | None, help="Also write the comparison to this file.")
    parser.add_subclass_arguments(LightningModule, "model", help="The model's class and options.")
    parser.add_subclass_arguments(LightningDataModule, "data", help="The data's class and options.")
    for name in OF_A_TRAINING:  # in the config file of one
        parser.add_argument(f"--{name}", type=Any, help=argparse.SUPPRESS)
    with user_errors():
        path = typed(arguments, "checkpoint")
        checkpoint = None if path is None else read_checkpoint(path)
        saved = {} if checkpoint is None else saved_options(checkpoint)
        options = parser.parse_args([*before_typed(arguments, saved, CLASSES), *arguments])
        check_unchanged(options.as_dict(), saved, CLASSES)
        if options.json is not None and not os.path.isdir(Path(options.json).parent):
            raise ValueError(
                f"Expected `--json` in a folder that exists, got {options.json!r}. Make the folder first, or name another file."
            )
        unused = [name for name in OF_A_TRAINING if options[name] is not None]
        if unused:
            print(f"Not used here, from the options of a training: {', '.join(unused)}.\n")
        seed_everything(options.seed)
        built = parser.instantiate_classes(options)
        model = built.model if checkpoint is None else _restored(path, checkpoint, built.model)
        built.data.prepare_data()
        built.data.setup("fit")
        comparison = compare_training_step(model, first_batch(built.data.train_dataloader()))
    which = "a fresh model" if path is None else path
    print(f"Gradients of one training batch, by hand and by autograd, for {which}:\n\n{comparison}")
    if options.json is not None:
        Path(options.json).write_text(comparison.to_json() + "\n")
    return 0 if comparison.ok else 1


def _restored(path: str, checkpoint: dict[str, Any], built: LightningModule) -> LightningModule:
    """The model in the checkpoint: with the options that Lightning has saved in it, or where there are none its weights in
    `built`."""
    if checkpoint.get("hyper_parameters"):
        return type(built).load_from_checkpoint(path, map_location="cpu", weights_only=True)
    built.load_state_dict(checkpoint["state_dict"])
    return built
