"""Factored gradients under the Trainer, with no override in the module: the weights of the autograd twin."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import manualgrad as mg
from tests.factored.nets import assert_same_weights, batch, net, twin


pytestmark = pytest.mark.usefixtures("small_weights_too")


class Regression(LightningModule):
    def __init__(self, model: nn.Module, optimizer: Callable[..., torch.optim.Optimizer]) -> None:
        super().__init__()
        self.model, self.make_optimizer = model, optimizer
        self.seen: list[type] = []

    def training_step(self, pair: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.mse_loss(self.model(pair[0]), pair[1])

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self.seen.append(type(self.model[0].weight.grad))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.make_optimizer(self.model.parameters(), lr=0.1, momentum=0.9)


def trainer(folder: Path, **options: Any) -> Trainer:
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(accelerator="cpu", default_root_dir=folder, enable_checkpointing=False, **quiet, **options)


def data(dtype: torch.dtype) -> DataLoader:
    return DataLoader(TensorDataset(*batch(24, dtype=dtype)), batch_size=3)


PRECISIONS = {"32-true": torch.float32, "bf16-mixed": torch.float32, "64-true": torch.float64}
CLIPPING: list[dict[str, Any]] = [
    {},
    {"gradient_clip_val": 0.05, "gradient_clip_algorithm": "norm"},
    {"gradient_clip_val": 0.001, "gradient_clip_algorithm": "value"},
]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("clipping", CLIPPING, ids=["", "norm", "value"])
def test_trains_as_the_autograd_twin(precision: str, accumulate: int, clipping: dict[str, Any], tmp_path: Path) -> None:
    dtype = PRECISIONS[precision]
    ours = Regression(net(dtype), mg.GradientDescent)
    theirs = Regression(twin(ours.model), torch.optim.SGD)
    for module in (ours, theirs):
        options = {"precision": precision, "accumulate_grad_batches": accumulate, "max_epochs": 2, **clipping}
        trainer(tmp_path, **options).fit(module, data(dtype))
    assert set(ours.seen) == {mg.FactoredGradient} and set(theirs.seen) == {Tensor}
    assert_same_weights(ours, theirs, {"32-true": 1e-5, "bf16-mixed": 2e-3, "64-true": 1e-12}[precision])


def test_resumes_in_mid_run(tmp_path: Path) -> None:
    through = Regression(net(), mg.GradientDescent)
    trainer(tmp_path, precision="64-true", max_epochs=4).fit(through, data(torch.float64))
    first = Regression(net(), mg.GradientDescent)
    part = trainer(tmp_path, precision="64-true", max_epochs=2)
    part.fit(first, data(torch.float64))
    part.save_checkpoint(tmp_path / "half.ckpt")
    resumed = Regression(net(seed=5), mg.GradientDescent)
    resumed.double()
    rest = trainer(tmp_path, precision="64-true", max_epochs=4)
    rest.fit(resumed, data(torch.float64), ckpt_path=tmp_path / "half.ckpt")
    assert_same_weights(resumed, through, 0.0)
