"""`manualgrad compare`: gradients by hand beside autograd's, for a checkpoint or a fresh model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser
from lightning.pytorch import LightningDataModule, LightningModule, seed_everything

from manualgrad.cli.checkpoint import read_checkpoint
from manualgrad.cli.fit import DEFAULTS, first_batch, prepare, user_errors
from manualgrad.lightning.step_comparison import compare_training_step


def compare(arguments: Sequence[str]) -> int:
    """Print the comparison for the first training batch. Returns 0 if every row is ok, else 1."""
    prepare()
    parser = ArgumentParser(
        prog="manualgrad compare", description="Set gradients by hand beside autograd's.", exit_on_error=False
    )
    parser.add_argument("--config", action="config", help="A YAML file with these options.")
    parser.add_argument("--checkpoint", type=str | None, help="Compare the model in it; else a fresh one.")
    parser.add_argument("--seed", type=int, default=0, help="Of a fresh model's weights.")
    parser.add_argument("--json", type=str | None, help="Also write the comparison to this file.")
    parser.add_subclass_arguments(LightningModule, "model", help="The model's class and options.")
    parser.add_subclass_arguments(LightningDataModule, "data", help="The data's class and options.")
    parser.set_defaults({key: DEFAULTS[key] for key in ("model", "data")})
    with user_errors():
        options = parser.parse_args(list(arguments))
        if options.json is not None and not Path(options.json).parent.is_dir():
            raise ValueError(
                f"Expected `--json` in a folder that exists, got {options.json!r}. Make the folder first, or name another file."
            )
        seed_everything(options.seed)
        built = parser.instantiate_classes(options)
        model = built.model if options.checkpoint is None else _from_checkpoint(options.checkpoint, built.model)
        built.data.prepare_data()
        built.data.setup("fit")
        comparison = compare_training_step(model, first_batch(built.data.train_dataloader()))
    print(
        f"Gradients of one training batch, by hand and by autograd, {_described(options.checkpoint)}:\n\n{comparison}"
    )
    if options.json is not None:
        Path(options.json).write_text(comparison.to_json() + "\n")
    return 0 if comparison.ok else 1


def _described(checkpoint: str | None) -> str:
    return "for a fresh model" if checkpoint is None else f"for {checkpoint}"


def _from_checkpoint(path: str, built: LightningModule) -> LightningModule:
    """The model in the checkpoint, from the class and options saved in it; where there are none, its weights in `built`."""
    checkpoint = read_checkpoint(path)
    options = checkpoint.get("hyper_parameters", {})
    if not options:
        built.load_state_dict(checkpoint["state_dict"])
        return built
    model_class = LightningModule if "_class_path" in options else type(built)  # `manualgrad fit` saves the class too
    return model_class.load_from_checkpoint(path, map_location="cpu", weights_only=True)
