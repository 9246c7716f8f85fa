"""sigma and sigma', built in and user-defined, against torch.nn and autograd."""

import copy
import pickle
import re
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

import manualgrad as mg
from manualgrad.activation.built_in import activation_named, elu, leaky_relu, softplus
from tests.activation.unknown_activation import unknown_activation


TWINS: dict[str, nn.Module] = {
    "identity": nn.Identity(),
    "relu": nn.ReLU(),
    "leaky_relu": nn.LeakyReLU(),
    "elu": nn.ELU(),
    "sigmoid": nn.Sigmoid(),
    "tanh": nn.Tanh(),
    "softplus": nn.Softplus(),
    "gelu": nn.GELU(),
    "gelu_tanh": nn.GELU(approximate="tanh"),
    "silu": nn.SiLU(),
}
PARAMETRISED: list[tuple[mg.Activation, nn.Module]] = [
    (leaky_relu(0.2), nn.LeakyReLU(0.2)),
    (leaky_relu(0.0), nn.LeakyReLU(0.0)),
    (leaky_relu(-0.5), nn.LeakyReLU(-0.5)),
    (elu(0.5), nn.ELU(0.5)),
    (elu(0.0), nn.ELU(0.0)),
    (elu(-0.5), nn.ELU(-0.5)),
    (softplus(2.0, 5.0), nn.Softplus(2.0, 5.0)),
]
CASES = [(mg.activations[name], twin) for name, twin in TWINS.items()] + PARAMETRISED
NAMES = [activation.name for activation, _ in CASES]
each_case = pytest.mark.parametrize(("activation", "twin"), CASES, ids=NAMES)
INF = float("inf")
POINTS = [0.0, -0.0, 1e-8, -1e-8, 1.0, -1.0, 3.7, -3.7, 19.9, 20.1, 50.0, -50.0, INF, -INF, float("nan")]


def kept(activation: mg.Activation, z: Tensor) -> Tensor:
    """What sigma' is computed from."""
    return activation.value(z) if activation.from_output else z


def autograd_derivative(function: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    z = z.detach().requires_grad_()
    (derivative,) = torch.autograd.grad(function(z).sum(), z)
    return derivative


def test_built_in_names() -> None:
    assert set(mg.activations) == set(TWINS)
    assert all(activation.name == name for name, activation in mg.activations.items())


def test_the_table_of_built_in_ones_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        mg.activations["relu"] = mg.activations["tanh"]  # type: ignore[index]


@each_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_values_and_gradients_of_a_layer_equal_the_twin(
    activation: mg.Activation, twin: nn.Module, dtype: torch.dtype
) -> None:
    """Through a layer with the weight 1, so that z is what it is given; NaN where the twin has NaN. Equal bit for bit,
    except for elu: its a + alpha carries the rounding of a, where autograd keeps z and computes alpha e^z."""
    rounding = torch.finfo(dtype).eps if activation.name.startswith("elu") else 0.0
    weight = torch.ones(1, 1, dtype=dtype)
    points = torch.tensor(POINTS, dtype=dtype).unsqueeze(1)
    ours, theirs = points.clone().requires_grad_(), points.clone().requires_grad_()
    a = mg.dense(ours, weight, None, activation)
    expected = twin(theirs)
    torch.testing.assert_close(a, expected, rtol=0, atol=0, equal_nan=True)
    upstream = torch.full_like(a, 1.7)
    (gradient,) = torch.autograd.grad(a, ours, upstream)
    (expected_gradient,) = torch.autograd.grad(expected, theirs, upstream)
    torch.testing.assert_close(gradient, expected_gradient, rtol=0, atol=rounding, equal_nan=True)


@each_case
def test_derivative_is_product_and_autograd_at_every_point(activation: mg.Activation, twin: nn.Module) -> None:
    z = torch.tensor(POINTS, dtype=torch.float64)
    x = kept(activation, z)
    derivative = activation.derivative(x)
    assert derivative.shape == z.shape and derivative.dtype == z.dtype
    if activation.product is not None:
        product = activation.product(torch.ones_like(x), x)
        torch.testing.assert_close(derivative, product, rtol=1e-13, atol=1e-15, equal_nan=True)
    expected = autograd_derivative(twin, z)
    torch.testing.assert_close(derivative, expected, rtol=1e-13, atol=1e-15, equal_nan=True)


@each_case
@pytest.mark.parametrize(("dtype", "eps"), [(torch.float32, 1e-6), (torch.float16, 4e-3), (torch.bfloat16, 4e-2)])
def test_derivative_in_lower_precision(
    activation: mg.Activation, twin: nn.Module, dtype: torch.dtype, eps: float
) -> None:
    z = torch.linspace(-4, 4, 41, dtype=dtype)
    derivative = activation.derivative(kept(activation, z))
    assert derivative.dtype == dtype
    torch.testing.assert_close(derivative.double(), autograd_derivative(twin, z.double()), rtol=0, atol=eps)


@each_case
def test_value_and_derivative_change_nothing(activation: mg.Activation, twin: nn.Module) -> None:
    z = torch.randn(5)
    x = kept(activation, z)
    before = z.clone(), x.clone()
    activation.derivative(x)
    if activation.product is not None:
        activation.product(torch.ones(5), x)
    assert torch.equal(z, before[0]) and torch.equal(x, before[1])
    assert z._version == x._version == 0


@pytest.mark.parametrize("name", ["sigmoid", "tanh", "identity"])
def test_complex_derivative(name: str) -> None:
    activation, z = mg.activations[name], torch.randn(20, dtype=torch.complex128)
    expected = autograd_derivative(lambda x: TWINS[name](x).real, z).conj()  # Wirtinger: conj(sigma') comes back
    torch.testing.assert_close(activation.derivative(kept(activation, z)), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "name", [name for name in TWINS if mg.activations[name].from_output], ids=lambda name: f"{name} keeps a"
)
def test_from_output_needs_no_z(name: str) -> None:
    saved: list[Tensor] = []

    def keep(x: Tensor) -> Tensor:
        saved.append(x)
        return x

    x = torch.randn(4, 3, requires_grad=True)
    weight = torch.randn(2, 3)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        a = mg.dense(x, weight, None, name)
    rows = [tensor for tensor in saved if tensor.shape == (4, 2)]
    assert len(rows) == (name != "identity")
    assert all(torch.equal(tensor, a) for tensor in rows)


# User-defined ones


@pytest.fixture
def cube() -> Iterator[mg.Activation]:
    yield mg.Activation("cube", value=lambda z: z**3, derivative=lambda z: 3 * z**2)


def test_user_defined_by_object_and_by_name(cube: mg.Activation) -> None:
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    w = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    expected = torch.autograd.grad(((x @ w.T) ** 3).sum(), (x, w))
    for activation in (cube, "cube"):
        found = torch.autograd.grad(mg.dense(x, w, None, activation).sum(), (x, w))
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert mg.Dense(3, 2, activation="cube").activation is cube
    assert repr(cube) == "Activation('cube')"
    assert "cube" not in mg.activations


def test_user_defined_second_derivatives(cube: mg.Activation) -> None:
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    w = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x, w: mg.dense(x, w, None, cube), (x, w))


def test_user_defined_from_output() -> None:
    activation = mg.Activation("my sigmoid", torch.sigmoid, lambda a: a * (1 - a), from_output=True)
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    w = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, w: mg.dense(x, w, None, activation), (x, w))
    assert torch.autograd.gradgradcheck(lambda x, w: mg.dense(x, w, None, activation), (x, w))


def test_user_defined_complex(cube: mg.Activation) -> None:
    x = torch.randn(4, 3, dtype=torch.complex128, requires_grad=True)
    w = torch.randn(2, 3, dtype=torch.complex128, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, w: mg.dense(x, w, None, cube), (x, w))


@pytest.mark.parametrize("from_output", [True, False])
def test_a_value_that_returns_its_argument(from_output: bool) -> None:
    activation = mg.Activation("mine", value=lambda z: z, derivative=torch.ones_like, from_output=from_output)
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    w = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, w: mg.dense(x, w, None, activation), (x, w))
    assert torch.autograd.gradgradcheck(lambda x, w: mg.dense(x, w, None, activation), (x, w))


def test_redefinition_holds_for_new_layers_only(cube: mg.Activation) -> None:
    old = mg.Dense(3, 2, activation="cube")
    new_cube = mg.Activation("cube", value=lambda z: z**3 + 1, derivative=lambda z: 3 * z**2)
    assert old.activation is cube
    assert copy.deepcopy(old).activation is cube
    assert mg.Dense(3, 2, activation="cube").activation is new_cube


def test_pickle_finds_it_by_name(cube: mg.Activation) -> None:
    assert pickle.loads(pickle.dumps(cube)) is cube
    for name, activation in mg.activations.items():
        assert pickle.loads(pickle.dumps(activation)) is activation, name


@pytest.mark.parametrize(("activation", "twin"), PARAMETRISED, ids=[a.name for a, _ in PARAMETRISED])
def test_pickle_makes_a_parametrised_one_again(activation: mg.Activation, twin: nn.Module) -> None:
    loaded = pickle.loads(pickle.dumps(activation))
    z = torch.randn(10)
    assert loaded.name == activation.name
    assert torch.equal(loaded.value(z), twin(z))


def test_unpickling_in_a_fresh_interpreter(cube: mg.Activation) -> None:
    """Built-in ones are there, parametrised ones are made again, the user's own must be defined first."""
    known, own = pickle.dumps((leaky_relu(0.2), mg.activations["gelu"])), pickle.dumps(cube)
    program = (
        f"import pickle; print(*[a.name for a in pickle.loads({known!r})])\n"
        f"try: pickle.loads({own!r})\n"
        "except ValueError as error: print(error)"
    )
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    names, error = output.stdout.splitlines()
    assert names == "leaky_relu(0.2) gelu"
    assert error.startswith("Unknown activation 'cube'. Known: identity, ")
    assert error.endswith(". Define your own with mg.Activation('cube', value=..., derivative=...).")


def test_none_and_objects_are_accepted_as_they_are(cube: mg.Activation) -> None:
    assert activation_named(None) is mg.activations["identity"]
    assert activation_named(cube) is cube


# Errors


def test_unknown_name_lists_the_known_ones(cube: mg.Activation) -> None:
    for make in (lambda: activation_named("relv"), lambda: mg.Dense(2, 3, activation="relv")):
        with pytest.raises(ValueError) as caught:
            make()
        assert str(caught.value) == unknown_activation("relv", " Did you mean 'relu'?")
        assert "cube" in str(caught.value).split(". ")[1].split(", ")


def test_other_capitals_and_slips_are_understood() -> None:
    for given, meant in (
        ("ReLU", "relu"),
        ("LeakyReLU", "leaky_relu"),
        ("gelu-tanh", "gelu_tanh"),
        ("sigmoids", "sigmoid"),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(unknown_activation(given, f' Did you mean {meant!r}?'))}$"):
            activation_named(given)


@pytest.mark.parametrize(
    ("bad", "hint"),
    [
        (torch.relu, " Did you mean 'relu'?"),
        (nn.functional.leaky_relu, " Did you mean 'leaky_relu'?"),
        (nn.ReLU(inplace=True), " Did you mean 'relu'?"),
        (nn.SiLU, " Did you mean 'silu'?"),
        (nn.LeakyReLU(0.3), ""),
        (nn.Hardtanh(), ""),
        (nn.Linear(1, 1), ""),
        (nn.Sequential(), ""),
        (3, ""),
    ],
    ids=lambda value: re.sub(r"( at 0x\w+)?\W+", "-", str(value)),
)
def test_not_an_activation(bad: object, hint: str) -> None:
    sentence = (
        f"Expected `activation` to be a name, an Activation or None, got {bad!r}. "
        f"Pass for example 'relu', or wrap a function: mg.Activation(name, value=..., derivative=...).{hint}"
    )
    with pytest.raises(TypeError, match=f"^{re.escape(sentence)}$"):
        activation_named(bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", ["", None, 3])
def test_bad_name(bad: object) -> None:
    sentence = f"Activation expected `name` to be a non-empty string, got {bad!r}. Pass for example 'cube'."
    with pytest.raises(TypeError, match=f"^{re.escape(sentence)}$"):
        mg.Activation(bad, value=torch.tanh, derivative=torch.tanh)  # type: ignore[arg-type]


@pytest.mark.parametrize(("role", "example"), [("value", "z**3"), ("derivative", "3 * z**2")])
def test_not_a_function(role: str, example: str) -> None:
    functions = {"value": torch.tanh, "derivative": torch.tanh, role: 3}
    sentence = (
        f"Activation 'not made' expected `{role}` to be a function of a tensor, got 3. "
        f"Pass for example {role}=lambda z: {example}."
    )
    with pytest.raises(TypeError, match=f"^{re.escape(sentence)}$"):
        mg.Activation("not made", **functions)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=f"^{re.escape(unknown_activation('not made'))}$"):
        activation_named("not made")


def test_a_built_in_name_is_taken() -> None:
    before = mg.activations["relu"]
    sentence = "Activation 'relu' is built in and cannot be redefined. Choose another name."
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        mg.Activation("relu", value=torch.tanh, derivative=torch.tanh)
    assert mg.activations["relu"] is before is activation_named("relu")


@pytest.mark.parametrize(
    ("derivative", "came"),
    [
        (lambda z: 2.0, "2.0"),
        (lambda z: z.sum(), "a tensor of shape ()"),
        (lambda z: z[:1], "a tensor of shape (1, 2)"),
    ],
    ids=["number", "sum", "row"],
)
def test_a_derivative_of_the_wrong_shape(derivative: Callable[[Tensor], Tensor], came: str) -> None:
    activation = mg.Activation("flat", value=lambda z: 2 * z, derivative=derivative)
    layer = mg.Dense(3, 2, activation=activation)
    sentence = (
        "Activation 'flat' expected `derivative` to return a tensor of its argument's shape (4, 2), "
        f"got {came}. Compute it element by element; for a constant return torch.full_like(z, constant)."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        layer(torch.randn(4, 3)).sum().backward()
    assert layer.weight.grad is None


def test_parametrised_ones_are_known_by_no_name() -> None:
    before = unknown_activation("not there")
    for slope in (0.1, 0.2, 0.3):
        leaky_relu(slope), elu(slope), softplus(slope)
    assert unknown_activation("not there") == before and "leaky_relu(0.1)" not in before
