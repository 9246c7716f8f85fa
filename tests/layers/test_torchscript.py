"""torch.jit.script compiles a Dense and a converted model, and leaves the model that it was given as it was."""

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import nn

import manualgrad as mg
from manualgrad.lightning import BackpropModule


pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.* is deprecated:DeprecationWarning")


def converted() -> nn.Module:
    activations = nn.ELU(0.3, inplace=True), nn.GELU("tanh"), nn.LeakyReLU(0.3), nn.Softplus(2.0)
    return mg.convert(nn.Sequential(nn.Linear(3, 3), *activations, nn.Linear(3, 2)))


MODELS: dict[str, Any] = {
    **{name: lambda name=name: mg.Dense(3, 2, activation=name) for name in mg.activations},
    "without a bias": lambda: mg.MLP([3, 4, 2], "tanh", bias=False),
    "user-defined": lambda: mg.Dense(3, 2, activation=mg.Activation("cube", lambda z: z**3, lambda z: 3 * z**2)),
    "converted": converted,
}


@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
def test_a_scripted_model_computes_the_same(build: Any) -> None:
    model, x = build(), torch.randn(5, 3)
    modules = [(id(m), type(m)) for m in model.modules()]
    expected = model(x), torch.autograd.grad(model(x).sum(), list(model.parameters()))
    scripted = torch.jit.script(model)
    assert torch.equal(scripted(x), expected[0])
    torch.testing.assert_close(torch.autograd.grad(scripted(x).sum(), list(scripted.parameters())), expected[1])
    assert list(scripted.state_dict()) == list(model.state_dict())
    file = io.BytesIO()
    torch.jit.save(scripted, file)
    file.seek(0)
    assert torch.equal(torch.jit.load(file)(x), expected[0])
    assert [(id(m), type(m)) for m in model.modules()] == modules
    assert "Function" in model(x).grad_fn.name()
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(copied(x), expected[0])


@pytest.mark.filterwarnings(
    "ignore:.*LightningModule.to_torchscript. has been deprecated", "ignore:This property will be"
)
def test_a_module_of_lightning_is_scripted() -> None:
    module = BackpropModule()
    scripted: Any = module.to_torchscript()
    x = torch.randn(2, module.model.sizes[0])
    assert torch.equal(scripted(x), module(x)) and type(module.model[0]) is mg.Dense
