"""`BackpropModule` on real numbers: regression with the quadratic loss."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import seed_everything
from sklearn.metrics import mean_absolute_error, r2_score
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from manualgrad.lightning import BackpropModule
from manualgrad.lightning.targets import RSquared
from tests.lightning.runs import quiet_trainer, weights


def data(outputs: int | None, dtype: torch.dtype = torch.float32) -> TensorDataset:
    """Targets of shape (22, outputs), or (22,) for None: two full batches and one of six."""
    x = torch.randn(22, 3)
    y = x @ torch.tensor([[1.0, -2.0, 0.5], [0.0, 1.0, 1.0]]).T + 0.1 * torch.randn(22, 2) + 5
    return TensorDataset(x, (y[:, 0] if outputs is None else y[:, :outputs]).to(dtype))


def trained(folder: Path, dataset: TensorDataset, outputs: int = 1, precision: Any = "32-true", **options: Any) -> Any:
    seed_everything(0)
    module = BackpropModule((3, 4, outputs), "tanh", loss="quadratic", lr=0.05, **options)
    trainer = quiet_trainer(folder, max_epochs=3, precision=precision)
    trainer.fit(module, DataLoader(dataset, 8), DataLoader(dataset, 8))
    return trainer, module


@pytest.mark.parametrize("outputs", [None, 1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("engine", ["autograd", "train_step"])
def test_the_weights_of_torch_with_the_mean_squared_error(
    tmp_path: Path, outputs: int | None, dtype: torch.dtype, engine: Any
) -> None:
    dataset, m = data(outputs, dtype), outputs or 1
    _, module = trained(tmp_path, dataset, m, engine=engine, lr_schedule="constant")
    seed_everything(0)
    start = BackpropModule((3, 4, m), "tanh", loss="quadratic")
    twin = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, m))
    twin.load_state_dict(dict(zip(twin.state_dict(), start.model.state_dict().values(), strict=True)))
    sgd = torch.optim.SGD(twin.parameters(), lr=0.05, momentum=0.9)
    for _ in range(3):
        for x, y in DataLoader(dataset, 8):
            sgd.zero_grad()
            (0.5 * m * nn.functional.mse_loss(twin(x), y.float().reshape(len(x), m))).backward()
            sgd.step()
    torch.testing.assert_close(weights(module), weights(twin), rtol=0, atol=1e-6)


@pytest.mark.parametrize("outputs", [None, 2])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_logs_what_scikit_learn_computes_and_no_accuracy(tmp_path: Path, outputs: int | None, precision: str) -> None:
    dataset = data(outputs)
    trainer, module = trained(tmp_path, dataset, outputs or 1, precision)
    assert trainer.callback_metrics.keys() == {
        *("train_loss", "train_r2", "train_mae"),
        *("val_loss", "val_r2", "val_mae"),
    }
    logged = trainer.validate(module, DataLoader(dataset, 8), verbose=False)[0]
    x, y = dataset[:16]  # two batches: `limit_val_batches`
    with torch.autocast("cpu", enabled=precision != "32-true"):
        a = module(x).detach().float().squeeze(-1)
    assert logged["val_r2"] == pytest.approx(r2_score(y, a), abs=1e-5)
    assert logged["val_mae"] == pytest.approx(mean_absolute_error(y, a), abs=1e-2 if precision != "32-true" else 1e-6)


def test_predictions_are_the_outputs_also_of_a_loaded_module(tmp_path: Path) -> None:
    dataset = data(2)
    trainer, module = trained(tmp_path, dataset, 2)
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    loaded = BackpropModule.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    predicted: Any = quiet_trainer(tmp_path).predict(loaded, DataLoader(dataset, 8))
    torch.testing.assert_close(torch.cat(predicted), module(dataset.tensors[0]).detach())


def test_integer_classes_stay_one_hot_and_count_right_ones(tmp_path: Path) -> None:
    x, y = data(None).tensors
    trainer, _ = trained(tmp_path, TensorDataset(x, (y > 5).long()), 2)
    assert trainer.callback_metrics.keys() == {
        *("train_loss", "train_accuracy"),
        *("val_loss", "val_accuracy"),
    }


@pytest.mark.parametrize(
    ("outputs", "shape", "expected"),
    [
        (1, (1, 4), "(4, 1) or (4,), got (1, 4)"),
        (1, (4, 2), "(4, 1) or (4,), got (4, 2)"),
        (3, (4,), "(4, 3), got (4,)"),
        (3, (4, 1), "(4, 3), got (4, 1)"),
        (4, (4,), "(4, 4), got (4,)"),
    ],
)
def test_nothing_is_broadcast(outputs: int, shape: tuple[int, ...], expected: str) -> None:
    sentence = (
        f"BackpropModule expected floating point targets of the outputs' shape {expected}. Reshape them, nothing is "
        "broadcast; or, if they are class indices, convert them with targets.long()."
    )
    module = BackpropModule((2, outputs), loss="quadratic")
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        module.cost(torch.zeros(4, outputs), torch.zeros(shape))


def r_squared(parts: list[tuple[Tensor, Tensor]]) -> float:
    metric = RSquared(parts[0][0].size(-1))
    for outputs, targets in parts:
        metric.update(outputs, targets)
    return metric.compute().item()


def test_r_squared_of_batches_is_that_of_the_whole_far_from_zero_too() -> None:
    y = 1e6 + torch.randn(500, 2)
    a = y + 0.5 * torch.randn(500, 2)
    expected = r2_score(y.double(), a.double())
    for size in (1, 7, 500):
        assert r_squared(list(zip(a.split(size), y.split(size), strict=True))) == pytest.approx(expected, abs=2e-3)


def test_r_squared_is_nan_where_there_is_nothing_to_explain() -> None:
    assert r_squared([(torch.ones(1, 1), torch.zeros(1, 1))]) != r_squared([(torch.ones(1, 1), torch.zeros(1, 1))])
    constant = r_squared([(torch.ones(5, 1), torch.full((5, 1), 3.0))])
    assert constant != constant


def test_r_squared_of_several_processes_is_joined() -> None:
    y, a = torch.randn(9, 2), torch.randn(9, 2)
    parts = []
    for part in (slice(0, 2), slice(2, 9), slice(9, 9)):  # the last has seen nothing
        metric = RSquared(2)
        metric.update(a[part], y[part])
        parts.append(metric)
    for name in ("rows", "mean", "spread", "error"):  # as torchmetrics gathers them
        setattr(parts[0], name, torch.stack([getattr(part, name) for part in parts]))
    assert parts[0].compute().item() == pytest.approx(r2_score(y, a), abs=1e-6)
