"""Random trainings of `BackpropModule`: engine "train_step" reaches the weights of "autograd", or refuses by name.

`python -m tests.lightning.test_engine_fuzz FIRST COUNT` runs many.
"""

from __future__ import annotations

import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch.optim import lr_scheduler

from manualgrad.lightning import BackpropModule
from tests.lightning.runs import weights
from tests.lightning.small_fits import CLASSES, FEATURES, fit, loader


class Fuzzed(BackpropModule):
    """With a scheduler of PyTorch's, and layers frozen."""

    make_scheduler: Any = None
    frozen: tuple[str, ...] = ()

    def configure_optimizers(self) -> Any:
        for name in self.frozen:
            self.get_parameter(name).requires_grad_(False)
        configured = super().configure_optimizers()
        if self.make_scheduler is None:
            return configured
        optimizer = configured["optimizer"] if isinstance(configured, dict) else configured
        return {"optimizer": optimizer, "lr_scheduler": self.make_scheduler(optimizer)}


class Meddler(Callback):
    """Changes an option, or what is trained, between two steps."""

    def __init__(self, step: int, change: str) -> None:
        self.step, self.change = step, change

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step != self.step:
            return
        (group,) = trainer.optimizers[0].param_groups
        first, last = pl_module.model[0], pl_module.model[-1]
        if self.change == "momentum":
            group["momentum"] = 0.3
            group["nesterov"] = False
        elif self.change == "decay":
            group["weight_decay"] = 0.05
        elif self.change == "freeze":
            last.weight.requires_grad_(not last.weight.requires_grad)
        elif self.change == "weights":
            with torch.no_grad():
                first.weight.mul_(0.9)


SCHEDULERS: dict[str, Any] = {
    "StepLR": lambda o: {"scheduler": lr_scheduler.StepLR(o, 1, 0.5)},
    "Exponential": lambda o: {"scheduler": lr_scheduler.ExponentialLR(o, 0.8), "interval": "step", "frequency": 2},
    "Plateau": lambda o: {
        "scheduler": lr_scheduler.ReduceLROnPlateau(o, factor=0.5, patience=0, threshold=0.5),
        "monitor": "val_loss",
    },
    "OneCycle": lambda o: {"scheduler": lr_scheduler.OneCycleLR(o, 0.3, total_steps=40), "interval": "step"},
    "Cyclic": lambda o: {
        "scheduler": lr_scheduler.CyclicLR(o, 0.01, 0.2, step_size_up=3, cycle_momentum=o.defaults["momentum"] > 0),
        "interval": "step",
    },
}


def training(seed: int) -> dict[str, Any]:
    """Options of a random training."""
    draw = random.Random(seed)
    loss = draw.choice(["quadratic", "cross_entropy", "binary_cross_entropy"])
    hidden = [draw.randint(1, 7) for _ in range(draw.randint(0, 3))]
    momentum = draw.choice([0.0, 0.5, 0.9])
    layers = range(len(hidden) + 1)
    frozen = [f"model.{i}.{part}" for i in layers for part in ("weight", "bias") if draw.random() < 0.15]
    return {
        "module": {
            "sizes": (FEATURES, *hidden, CLASSES),
            "activation": draw.choice(["relu", "tanh", "sigmoid", "gelu", "softplus", "leaky_relu"]),
            "output_activation": draw.choice([None, "sigmoid", "tanh"]) if loss == "quadratic" else None,
            "loss": loss,
            "lr": draw.choice([0.0, 0.01, 0.3]),
            "momentum": momentum,
            "weight_decay": draw.choice([0.0, 0.01]),
            "nesterov": momentum > 0 and draw.random() < 0.4,
            "lr_schedule": draw.choice(["constant", "cosine", "linear"]),
            "max_norm": draw.choice([None, 0.1, 10.0]),
        },
        "scheduler": draw.choice([None, None, *SCHEDULERS]),
        "frozen": frozen if len(frozen) < 2 * len(layers) else [],
        "batches": (draw.randint(1, 25), draw.randint(1, 8)),
        "trainer": draw.choice([{}, {}, {"max_epochs": 2}, {"max_steps": 5}, {"limit_train_batches": 2}]),
        "refused": draw.choice([{}] * 8 + [{"accumulate_grad_batches": 3}, {"gradient_clip_val": 0.3}]),
        "meddler": draw.choice([None, None, "momentum", "decay", "freeze", "weights"]),
        "at": draw.randint(0, 6),
        "resume_with": draw.choice([None, None, "autograd", "train_step"]),
    }


def module(options: dict[str, Any], engine: str) -> Fuzzed:
    torch.manual_seed(0)
    made = Fuzzed(engine=engine, **options["module"])  # type: ignore[arg-type]
    made.make_scheduler, made.frozen = SCHEDULERS.get(options["scheduler"]), options["frozen"]
    return made


def trained(options: dict[str, Any], engine: str, directory: Path) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model = module(options, engine)
    meddlers = [Meddler(options["at"], options["meddler"])] if options["meddler"] else []
    batches = loader(*options["batches"])
    trainer = fit(directory, model, batches=batches, callbacks=meddlers, **options["trainer"], **options["refused"])
    if options["resume_with"]:
        trainer.save_checkpoint(directory / f"{engine}.ckpt")
        follower = engine if options["resume_with"] == engine else "autograd"
        model = module(options, follower)
        trainer = fit(directory, model, directory / f"{engine}.ckpt", batches=batches, max_epochs=5)
    return weights(model).double(), trainer.callback_metrics


def check(seed: int, directory: Path) -> str:
    options = training(seed)
    if options["refused"]:
        with pytest.raises(ValueError, match='^engine="train_step" expected Trainer'):
            trained(options, "train_step", directory)
        return "refused"
    outcomes: list[Any] = []
    for engine in ("train_step", "autograd"):
        try:
            outcomes.append(trained(options, engine, directory))
        except (ValueError, RuntimeError) as error:
            outcomes.append(error)
    if any(isinstance(outcome, Exception) for outcome in outcomes):
        assert all(isinstance(outcome, Exception) for outcome in outcomes), (seed, options, outcomes)
        return f"both refused: {outcomes[0]}"
    (ours, metrics), (theirs, expected) = outcomes
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11, msg=lambda text: f"{seed} {options}\n{text}")
    for name, value in expected.items():
        text = f"{seed} {name}: {metrics[name]}, not {value}"
        torch.testing.assert_close(metrics[name], value, rtol=1e-5, atol=1e-6, msg=text)
    return "equal"


@pytest.mark.parametrize("seed", range(1, 7))
def test_random_trainings(seed: int, tmp_path: Path) -> None:
    check(seed, tmp_path)


if __name__ == "__main__":
    first, count = map(int, sys.argv[1:])
    for seed in range(first, first + count):
        with tempfile.TemporaryDirectory() as folder:
            try:
                print(seed, check(seed, Path(folder)), flush=True)
            except AssertionError as error:
                print(seed, "WRONG", str(error).replace("\n", " | "), flush=True)
