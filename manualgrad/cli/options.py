"""Options of a command: those that were typed, those that a checkpoint was saved with, and the defaults for the rest."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Callback, LightningModule, Trainer

from manualgrad.explain.printable import printable


KEY = "manualgrad.options"  # in a checkpoint: the options below, as they stand in a config file
KEPT = ("seed_everything", "model", "data", "optimizer", "lr_scheduler")
DEFAULT_CLASSES = {"model": "manualgrad.lightning.BackpropModule", "data": "manualgrad.lightning.DigitsDataModule"}
LIMITS = ("max_epochs", "max_steps", "max_time", "min_epochs", "min_steps")


class KeepOptions(Callback):
    """Saves the options of the command with every checkpoint, so that the next command need not be told them."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.options = {key: options[key] for key in KEPT if options.get(key) is not None}

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint[KEY] = self.options


def typed(arguments: Sequence[str], key: str) -> Any:
    """What the arguments, or the config files among them, last give for `--key`; of a class its path. None: nothing."""
    value = None
    for argument, following in zip(arguments, [*arguments[1:], None], strict=False):
        name, equals, text = argument.partition("=")
        given = text if equals else following
        if name in (f"--{key}", f"--{key}.class_path"):
            value = given
        elif name in ("--config", "-c") and given is not None:
            value = _in_config(given, key) or value
    return value


def _in_config(config: str, key: str) -> Any:
    """`config` is a path, or what stands in such a file."""
    try:
        found = yaml.safe_load(Path(config).read_text() if os.path.isfile(config) else config)
    except (OSError, ValueError, yaml.YAMLError):  # the parser will say so
        return None
    for part in [*key.split("."), "class_path"]:
        if part == "class_path" and not isinstance(found, dict):
            break
        found = found.get(part) if isinstance(found, dict) else None
    return found


def saved_options(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The options that the checkpoint was saved with: all of them if `manualgrad fit` has written it, else the model's, from
    its hyperparameters as far as these are plain values. The class of the model is None if the checkpoint does not say it."""
    if KEY in checkpoint:
        return dict(checkpoint[KEY])
    saved = checkpoint.get("hyper_parameters", {})
    default = DEFAULT_CLASSES["model"] if "sizes" in saved and "lr_schedule" in saved else None
    arguments = {name: _listed(value) for name, value in saved.items() if not name.startswith("_") and is_plain(value)}
    return {"model": {"class_path": saved.get("_class_path", default), "init_args": arguments}}


def is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and is_plain(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return all(map(is_plain, value))
    return value is None or type(value) in (bool, int, float, str)


def _listed(value: Any) -> Any:
    return [_listed(item) for item in value] if isinstance(value, list | tuple) else value


def before_typed(arguments: Sequence[str], saved: Mapping[str, Any], keys: Sequence[str]) -> list[str]:
    """The arguments to put before those that were typed, which win: the saved options of these keys, and where neither names
    a class the default class. Options of a saved class go with that class only, and our defaults with ours.

    Raises ValueError if there is a checkpoint and nothing names the model's class.
    """
    config, classes = {}, []
    for key in keys:
        if key not in DEFAULT_CLASSES:
            if key in saved:
                config[key] = saved[key]
            continue
        named, kept = typed(arguments, key), saved.get(key)
        if kept is not None and (named or kept["class_path"]) is None:
            raise ValueError(
                f"Expected --{key} with the class of what is in the checkpoint, which does not say it. "
                "Pass for example --model mine.Net --data mine.Data, with the options that they had."
            )
        if kept is not None and (named is None or _last(named) == _last(kept["class_path"] or named)):
            config[key] = {**kept, "class_path": named or kept["class_path"]}
        elif named is None:
            classes += [f"--{key}", DEFAULT_CLASSES[key]]
    return [*(["--config", yaml.safe_dump(config)] if config else []), *classes]


def _last(class_path: str) -> str:
    return class_path.rpartition(".")[2]


def trainer_defaults(arguments: Sequence[str]) -> list[str]:
    """What takes our defaults for the Trainer back where something was typed that they would overrule."""
    limits = [limit for limit in LIMITS if typed(arguments, f"trainer.{limit}") is not None]
    without = ["--trainer.max_epochs", "null"] if limits and "max_epochs" not in limits else []
    barebones = str(typed(arguments, "trainer.barebones")).lower() == "true"
    return [*without, *(["--trainer.log_every_n_steps", "null"] if barebones else [])]


def check_unchanged(options: Mapping[str, Any], saved: Mapping[str, Any], keys: Sequence[str]) -> None:
    """Raises ValueError, which names them, for options other than those the checkpoint was saved with: it would overrule them,
    or they would not fit what is in it. Data may always be other data."""
    given, kept = (
        _flat({key: which[key] for key in keys if key != "data" and key in which}) for which in (options, saved)
    )
    changed = [name for name in kept if name in given and given[name] != kept[name] and not name.endswith("class_path")]
    if changed:
        pairs = [(name, *(printable(str(which[name])) for which in (given, kept))) for name in changed]
        names = " and ".join(f"--{name} {new}, where it has {old}" for name, new, old in pairs)
        raise ValueError(
            f"Expected the options that the checkpoint was saved with, got {names}. Leave them out; or to go on from its weights "
            "with other options, in Python: load_from_checkpoint(path, option=...) of the model's class."
        )


def _flat(options: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested options by the names under which they are typed."""
    flat: dict[str, Any] = {}
    for name, value in options.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, prefix if name == "init_args" else f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
