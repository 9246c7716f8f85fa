"""`manualgrad fit|validate|test|predict`: Lightning's command line with defaults that need no arguments."""

import errno
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from traceback import extract_tb
from typing import Any

import lightning
import yaml
from jsonargparse import ArgumentError
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import CombinedLoader, rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.model_helpers import is_overridden

import manualgrad
from manualgrad.cli.checkpoint import check_resumable, read_checkpoint
from manualgrad.cli.options import (
    KEPT,
    KeepOptions,
    before_typed,
    check_unchanged,
    saved_options,
    trainer_defaults,
    typed,
)
from manualgrad.cli.run_folder import RecordingCheckpointIO, check_writable, claim_folder, last_checkpoint
from manualgrad.conversion.convert import convert
from manualgrad.dry_run import CannotCopyError
from manualgrad.lightning.checkpoint_io import save_whole
from manualgrad.lightning.data import DigitsDataModule
from manualgrad.lightning.hand_written_backprop import HandWrittenBackprop
from manualgrad.lightning.keep_random_states import KeepRandomStates
from manualgrad.lightning.step_comparison import compare_training_step


PACKAGE, LIGHTNING = Path(manualgrad.__file__).parent, Path(lightning.__file__).parent

DEFAULTS = {"trainer.max_epochs": 20, "trainer.log_every_n_steps": 1}


def _run(subcommand: str, arguments: Sequence[str]) -> None:
    prepare()
    with user_errors():
        CommandLine(
            args=[subcommand, *arguments],
            seed_everything_default=0,
            parser_kwargs={"prog": "manualgrad", "exit_on_error": False},
            save_config_kwargs={"overwrite": True},  # a run without a logger has no directory of its own
        )


fit, validate, test, predict = (partial(_run, subcommand) for subcommand in ("fit", "validate", "test", "predict"))


def prepare() -> None:
    """Find classes in the current directory, as `python -m` does, and silence what Lightning says in every run, whatever the
    user does."""
    sys.path.append(str(Path.cwd()))
    # Lightning 2.6 builds a tree specification in a way that torch 2.13 deprecates, and calls jsonargparse in ways that it does.
    leaf_spec, module = r"`isinstance\(treespec, LeafSpec\)` is deprecated", r"lightning\.pytorch\.utilities\._pytree"
    warnings.filterwarnings("ignore", message=leaf_spec, category=FutureWarning, module=module)
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    # A resumed run has a folder of its own, so the best checkpoint before it belongs to another run, as it should.
    warnings.filterwarnings("ignore", message="The dirpath has changed from")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # devices, seeds, advertisements
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)


class CommandLine(LightningCLI):
    """Any model and data class by `--model` and `--data`; the digits by default."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.set_defaults(DEFAULTS)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        subcommand, *arguments = args
        path, saved = typed(arguments, "ckpt_path"), {}
        if path == "last":
            path = str(last_checkpoint(typed(arguments, "trainer.default_root_dir") or "."))
            rank_zero_only(print)(f"Using {path}")
        if path is not None and not _is_for_lightning(path):
            saved = saved_options(check_resumable(path) if subcommand == "fit" else read_checkpoint(path))
        keys = KEPT if subcommand == "fit" else ("model", "data")
        completion = [*before_typed(arguments, saved, keys), *trainer_defaults(arguments)]
        self.config = parser.parse_args([subcommand, *completion, *arguments])
        options = self.config[subcommand]
        options.ckpt_path = path
        self.options = yaml.safe_load(self._parser(subcommand).dump(options, skip_none=False))
        check_unchanged(self.options, saved, keys)

    def _parse_ckpt_path(self) -> None:
        """Lightning would put the model's options in the checkpoint over those that were typed."""

    def after_instantiate_classes(self) -> None:
        if isinstance(data := self.datamodule, DigitsDataModule) and data.num_workers == 0:
            # The hint is about data on disk. The digits lie in memory, where worker processes only cost time.
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        options = self.config_init[self.subcommand].trainer
        given = [] if options.callbacks is None else options.callbacks
        callbacks = [*(given if isinstance(given, list) else [given]), KeepRandomStates(), KeepOptions(self.options)]
        saves = options.enable_checkpointing is not False and not options.barebones
        if saves and not any(isinstance(c, Checkpoint) for c in callbacks):
            callbacks = [*callbacks, ModelCheckpoint(filename="last", enable_version_counter=False)]  # one, the newest
        check_writable(options.default_root_dir or ".")
        trainer = super().instantiate_trainer(**{**kwargs, "callbacks": callbacks})
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # nothing of the user's own
            trainer.strategy.checkpoint_io = RecordingCheckpointIO(trainer.default_root_dir)
        if options.logger in (None, True) and not options.fast_dev_run and not options.barebones:
            claim_folder(trainer)
        return trainer

    def fit(self, **arguments: Any) -> None:
        try:
            self.trainer.fit(**arguments)
        except SystemExit as stop:  # how Lightning ends after Ctrl-C
            if not isinstance(stop.__context__, KeyboardInterrupt):
                raise
            path, nothing = self._checkpoint_path(), "Interrupted before the first checkpoint: nothing to go on from."
            go_on = f"Interrupted. Go on with the same options and --ckpt_path {path}"
            raise SystemExit(go_on if path else nothing) from None

    def after_fit(self) -> None:
        """Print the results, the comparison with autograd, and where logs and checkpoints are."""
        trainer, model = self.trainer, self.model
        train_loader = trainer.train_dataloader  # gone after `test`
        results: dict[str, float] = {}
        if is_overridden("test_step", model) and is_overridden("test_dataloader", self.datamodule or model):
            results = dict(trainer.test(model, datamodule=self.datamodule, verbose=False)[0])
        log_dir = trainer.log_dir  # every process must ask
        if not trainer.is_global_zero:
            return
        print()
        for name, value in results.items():
            shown = f"{100 * value:.1f} %" if "accuracy" in name else f"{value:.4g}"
            print(f"{name.replace('_', ' ').capitalize()}: {shown}")
        wrong: list[str] = []
        if model.automatic_optimization and train_loader is not None:
            if any(isinstance(callback, HandWrittenBackprop) for callback in trainer.callbacks):  # type: ignore[attr-defined]
                convert(model)  # as it was in the training
            try:
                comparison = compare_training_step(model, first_batch(train_loader))
                wrong = [row.name for row in comparison.rows if not row.ok]
                print(f"\nGradients of one training batch, by hand and by autograd:\n\n{comparison}\n")
            except CannotCopyError as error:  # the training has succeeded all the same
                print(f"\nGradients by hand and by autograd were not compared. {error}\n")
        if log_dir:
            print(f"Logs:       {log_dir}")
        if path := self._checkpoint_path():
            print(f"Checkpoint: {path}")
        if wrong:
            raise SystemExit(
                "The training has ended, but gradients by hand differ from autograd's by more than rounding "
                f"in {', '.join(wrong)}. Check the derivative of an activation or loss."
            )

    def predict(self, **arguments: Any) -> None:
        predictions = self.trainer.predict(**arguments)
        directory = Path(self.trainer.log_dir or self.trainer.default_root_dir)  # every process must ask
        if predictions:
            part = f"_{self.trainer.global_rank}" if self.trainer.world_size > 1 else ""  # each has its own images
            save_whole(predictions, path := directory / f"predictions{part}.pt")
            print(f"Predictions: {path}, a list with those of each of {len(predictions)} batches, for torch.load.")

    def _checkpoint_path(self) -> str:
        return str(getattr(self.trainer.checkpoint_callback, "best_model_path", ""))


@contextmanager
def user_errors() -> Iterator[None]:
    """Report an error of this package or of Lightning about what the user passed as one sentence; an error in the user's own
    model or data class keeps its traceback."""
    try:
        yield
    except ArgumentError as error:
        raise SystemExit(_condensed(str(error))) from None
    except (ValueError, TypeError, OSError, RuntimeError, MisconfigurationException) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise SystemExit(f"{error}. Make room, or choose another place with --trainer.default_root_dir.") from None
        first: BaseException = error
        while first.__cause__ is not None:  # what the parser has wrapped
            first = first.__cause__
        file = Path(extract_tb(first.__traceback__)[-1].filename)
        by_lightning = isinstance(first, MisconfigurationException | ValueError) and LIGHTNING in file.parents
        if by_lightning or PACKAGE in file.parents:
            raise SystemExit(str(first)) from None
        if str(first).startswith("Error(s) in loading state_dict"):
            raise SystemExit(f"The checkpoint does not fit the model. {' '.join(str(first).split())}") from None
        raise


def first_batch(loaders: Any) -> Any:
    """The first batch of a loader, or of a collection of loaders as Lightning combines them."""
    batch, _, _ = next(iter(CombinedLoader(loaders, "max_size_cycle")))
    return batch


def _condensed(message: str) -> str:
    """The parser's message as one sentence, without the lines about the types that it has tried."""
    tried = (
        "Does not validate",
        "Subtypes:",
        "Errors:",
        "Given value",
        "- Expected a <class 'NoneType'>",
        "- Expected a path",
    )
    message = message.replace("a <class 'collections.abc.Sequence'>", 'a list in brackets, for example "[64, 30, 10]"')
    lines = [line.strip() for line in message.splitlines()]
    return " ".join(line.removeprefix("- ") for line in lines if line and not line.startswith(tried))


def _is_for_lightning(path: str) -> bool:
    """Whether Lightning finds the checkpoint itself: a keyword or a URL."""
    return path.split(":")[0] in ("best", "hpc", "registry") or "://" in path
