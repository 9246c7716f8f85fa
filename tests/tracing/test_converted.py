"""The trace of a converted model names sigma, which stands in a module of its own, as that of the same model of Dense does."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import manualgrad as mg
from manualgrad.activation.torch_twins import twin_of


ACTIVATIONS = [
    nn.ReLU(), nn.ReLU(inplace=True), nn.LeakyReLU(0.2), nn.ELU(0.5), nn.ELU(inplace=True), nn.Sigmoid(), nn.Tanh(),
    nn.Softplus(), nn.GELU(), nn.SiLU(inplace=True),
]  # fmt: skip
X, Y = torch.randn(5, 4, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64)


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda module: str(module).lower())
def test_sigma_is_paired_with_the_layer_whose_output_it_receives(activation: nn.Module) -> None:
    plain: Any = nn.Sequential(nn.Linear(4, 6), activation, nn.Linear(6, 2)).double()
    reference = nn.Sequential(
        mg.Dense.from_linear(plain[0], twin_of(activation)), nn.Identity(), mg.Dense.from_linear(plain[2])
    )
    expected = mg.trace(reference, nn.MSELoss(), X, Y)
    model = mg.convert(plain)
    trace = mg.trace(model, nn.MSELoss(), X, Y)
    assert [layer.activation for layer in trace.layers] == [layer.activation for layer in expected.layers]
    for layer, other in zip(trace.layers, expected.layers, strict=True):
        for name in ("z", "a", "derivative", "cost_gradient", "delta", "grad_weight", "grad_bias", "weight_after"):
            torch.testing.assert_close(getattr(layer, name), getattr(other, name), rtol=1e-12, atol=1e-14)
    assert str(trace) == str(expected)


def converted(*modules: nn.Module) -> Any:
    return mg.convert(nn.Sequential(*modules)).double()


def test_an_activation_that_receives_something_else_is_not_paired() -> None:
    model = converted(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2))
    assert [layer.activation for layer in mg.trace(model, nn.MSELoss(), X, Y).layers] == ["identity", "identity"]
    model = converted(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    model[0].register_forward_hook(lambda module, inputs, output: 2 * output)
    assert mg.trace(model, nn.MSELoss(), X, Y).layers[0].activation == "identity"


class UsesZTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.sigma, self.last = nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        z = self.layer(x)
        return self.last(self.sigma(z) + z)


def test_a_layer_whose_z_goes_elsewhere_too_shows_its_own_delta() -> None:
    """dC/dz is then more than dC/da sigma'(z), so no single sigma stands behind the layer."""
    model = mg.convert(UsesZTwice().double())
    layer = mg.trace(model, nn.MSELoss(), X, Y).layers[0]
    model(X)  # as it was
    z = model.layer(X)
    expected = torch.autograd.grad(nn.functional.mse_loss(model.last(model.sigma(z) + z), Y), z)[0]
    assert layer.activation == "identity" and torch.equal(layer.a, layer.z)
    torch.testing.assert_close(layer.delta, expected, rtol=1e-12, atol=1e-14)
    assert torch.equal(layer.cost_gradient, layer.delta)


def test_a_shared_activation_and_one_called_twice() -> None:
    sigma = nn.Tanh()
    model = converted(nn.Linear(4, 6), sigma, nn.Linear(6, 6), sigma, nn.Linear(6, 2))
    assert [layer.activation for layer in mg.trace(model, nn.MSELoss(), X, Y).layers] == ["tanh", "tanh", "identity"]
    assert not sigma._forward_hooks and not sigma._forward_pre_hooks  # the trace's copies were listened to


def test_a_look_at_sigma_without_gradients_is_no_pair() -> None:
    class Looks(UsesZTwice):
        def forward(self, x: Tensor) -> Tensor:
            z = self.layer(x)
            with torch.no_grad():
                self.sigma(z)
            return self.last(z)

    assert mg.trace(mg.convert(Looks().double()), nn.MSELoss(), X, Y).layers[0].activation == "identity"


def test_the_page_and_json_name_it(tmp_path: Any) -> None:
    trace = mg.trace(converted(nn.Linear(4, 6), nn.Sigmoid(), nn.Linear(6, 2)), nn.MSELoss(), X, Y)
    assert trace.to_dict()["layers"][0]["activation"] == "sigmoid"
    trace.to_html(tmp_path / "page.html")
    assert "sigmoid" in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda module: str(module).lower())
def test_train_step_computes_it(activation: nn.Module) -> None:
    model = converted(nn.Linear(4, 6), activation, nn.Linear(6, 2))
    other = copy.deepcopy(model)
    step = mg.TrainStep(model, nn.MSELoss(), mg.GradientDescent(model.parameters(), lr=0.1))
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    for _ in range(5):
        step(X, Y)
        optimizer.zero_grad()
        nn.functional.mse_loss(other(X), Y).backward()
        optimizer.step()
    torch.testing.assert_close(model.state_dict(), other.state_dict(), rtol=1e-12, atol=1e-13)


def test_compare_switches_it_off_for_autograd() -> None:
    comparison = mg.compare(converted(nn.Linear(4, 6), nn.ELU(0.3), nn.Linear(6, 2)), nn.MSELoss(), X, Y)
    assert comparison.ok
