"""The monitor sees idle units of a converted model, whose activations stand in modules of their own."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import manualgrad as mg
from manualgrad.activation.torch_twins import twin_of
from tests.lightning.monitor.watched import Regression, filled, watched


def plain(*activations: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    sizes = [6, *[5] * len(activations)]
    modules: list[Any] = []
    for n, m, activation in zip(sizes, sizes[1:], activations, strict=False):
        modules += [nn.Linear(n, m), activation]
    return nn.Sequential(*modules, nn.Linear(5, 3)).double()


def fused(net: nn.Sequential) -> nn.Sequential:
    """The same net of Dense layers with their activations, in the same slots."""
    modules: list[Any] = list(net)
    for i in range(0, len(net) - 1, 2):
        modules[i] = mg.Dense.from_linear(modules[i], twin_of(modules[i + 1]))
        modules[i + 1] = nn.Identity()
    return nn.Sequential(*modules[:-1], mg.Dense.from_linear(modules[-1]))


@pytest.mark.parametrize(
    "activations",
    [
        (nn.ReLU(), nn.Sigmoid(), nn.Tanh()),
        (nn.ReLU(inplace=True), nn.ELU(0.5, inplace=True), nn.SiLU(inplace=True)),
        (nn.LeakyReLU(0.2), nn.GELU(), nn.Softplus()),
    ],
    ids=str,
)
def test_the_same_numbers_as_with_the_activation_in_the_layer(
    tmp_path: Path, activations: tuple[nn.Module, ...]
) -> None:
    converted: Any = mg.convert(plain(*activations))
    with torch.no_grad():
        converted[0].bias[0] = -100.0  # a dead unit, or a saturated one
    reference = fused(plain(*activations))
    reference.load_state_dict(converted.state_dict())
    options: dict[str, Any] = {"precision": "64-true"}
    histories = [watched(tmp_path, Regression(net), **options).history for net in (converted, reference)]
    for record, expected in zip(*histories, strict=True):
        assert record[:2] == expected[:2]
        assert filled(record) == pytest.approx(filled(expected), rel=1e-12)
    first = histories[0][0]
    assert (first.dead if first.dead is not None else first.saturated) is not None
    assert not any(module._forward_pre_hooks for module in converted.modules())


def test_an_activation_behind_something_else_is_not_the_layers(tmp_path: Path) -> None:
    net = mg.convert(nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)).double())
    history = watched(tmp_path, Regression(net), precision="64-true").history
    assert all(record.dead is None and record.saturated is None for record in history)
