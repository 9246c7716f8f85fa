"""The activation modules by hand against those of torch.nn: outputs bit for bit, gradients, and what may be overwritten."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import manualgrad as mg
from manualgrad.activation.torch_twins import TWINS, twin_of
from manualgrad.layers.activation_modules import BY_HAND, ActivationFunction


MODULES = [
    nn.ReLU(), nn.ReLU(inplace=True), nn.Sigmoid(), nn.Tanh(), nn.SiLU(), nn.SiLU(inplace=True), nn.GELU(), nn.GELU("tanh"),
    nn.LeakyReLU(), nn.LeakyReLU(0.2), nn.LeakyReLU(-0.3), nn.LeakyReLU(0.0), nn.LeakyReLU(0.2, inplace=True), nn.ELU(),
    nn.ELU(0.3), nn.ELU(-0.5), nn.ELU(0.7, inplace=True), nn.Softplus(), nn.Softplus(2.0, 0.5),
]  # fmt: skip
# PyTorch's own, on tracing any autograd.Function, and on what its Hessian uses
TRACING = "ignore:.*autograd.function.Function'> should not be instantiated:DeprecationWarning"
SCRIPTING = "ignore:.*torch.jit.script. is deprecated:DeprecationWarning"
SHAPES = [(), (5,), (4, 5), (2, 3, 4), (0, 3)]
every_module = pytest.mark.parametrize("plain", MODULES, ids=lambda m: str(m).lower())


def by_hand(plain: nn.Module) -> Any:
    return mg.convert(copy.deepcopy(plain))


def numbers(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return (3 * torch.randn(shape, dtype=dtype)).requires_grad_()


def names_of_nodes(a: Tensor) -> str:
    nodes: list[Any] = [a.grad_fn]
    return " ".join(
        node.name() for node in nodes + [edge[0] for edge in nodes[0].next_functions if edge[0] is not None]
    )


def test_there_is_one_for_each_twin() -> None:
    assert BY_HAND.keys() == TWINS.keys()
    for plain, by_hand in BY_HAND.items():
        assert issubclass(by_hand, plain) and by_hand.__name__ == plain.__name__


@every_module
def test_same_class_line_same_text_same_attributes(plain: nn.Module) -> None:
    twin = by_hand(plain)
    assert isinstance(twin, type(plain)) and str(twin) == str(plain) and twin.__dict__.keys() == plain.__dict__.keys()


@every_module
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_outputs_bit_for_bit_and_gradients(plain: nn.Module, shape: tuple[int, ...]) -> None:
    x, twin = numbers(*shape), by_hand(plain)
    expected, actual = plain(x * 1), twin(x * 1)
    assert torch.equal(actual, expected)
    upstream = torch.randn_like(expected)
    assert ActivationFunction.__name__ in names_of_nodes(actual)
    torch.testing.assert_close(
        torch.autograd.grad(actual, x, upstream), torch.autograd.grad(expected, x, upstream), rtol=1e-12, atol=1e-14
    )


@every_module
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_low_precision_and_autocast(plain: nn.Module, dtype: torch.dtype) -> None:
    layer, x, twin = nn.Linear(5, 6), torch.randn(4, 5), by_hand(plain)
    layer = layer if dtype == torch.float32 else layer.to(dtype)
    grads = []
    for module in (plain, twin):
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
            a = module(layer(x if dtype == torch.float32 else x.to(dtype)))
        grads.append((a, *torch.autograd.grad(a.float().square().sum(), list(layer.parameters()))))
    torch.testing.assert_close(grads[1], grads[0], rtol=0, atol=0)


@every_module
def test_second_derivatives(plain: nn.Module) -> None:
    twin = by_hand(plain)
    x = torch.linspace(-3, 3, 8, dtype=torch.float64).requires_grad_()  # away from the kinks
    assert torch.autograd.gradcheck(lambda x: twin(x * 1), x)
    assert torch.autograd.gradgradcheck(lambda x: twin(x * 1), x)


@pytest.mark.filterwarnings(SCRIPTING)
@every_module
def test_transforms_and_forward_mode(plain: nn.Module) -> None:
    twin, x = by_hand(plain), numbers(4, 3).detach()

    def of(module: nn.Module) -> Any:
        f = lambda x: module(x * 1).square().sum()  # noqa: E731
        return (
            torch.func.grad(f)(x),
            torch.func.vmap(torch.func.grad(f))(x),
            torch.func.jvp(f, (x,), (x + 1,)),
            torch.func.hessian(f)(x),
            torch.func.jacrev(torch.func.jacrev(f))(x),
        )

    torch.testing.assert_close(of(twin), of(plain), rtol=1e-12, atol=1e-13)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, x + 1)
        tangents = [torch.autograd.forward_ad.unpack_dual(module(dual * 1)).tangent for module in (plain, twin)]
    assert torch.equal(tangents[1], tangents[0])


@every_module
def test_batched_gradients(plain: nn.Module) -> None:
    x, twin = numbers(3), by_hand(plain)
    jacobians = [torch.autograd.functional.jacobian(lambda x: m(x * 1), x, vectorize=True) for m in (plain, twin)]  # noqa: B023
    torch.testing.assert_close(jacobians[1], jacobians[0], rtol=1e-12, atol=1e-14)


@pytest.mark.filterwarnings(TRACING)
@every_module
def test_compiled(plain: nn.Module) -> None:
    x = numbers(4, 3)
    torch._dynamo.reset()
    model = nn.Sequential(nn.Linear(3, 4), copy.deepcopy(plain), nn.Linear(4, 2)).double()
    expected = torch.autograd.grad(model(x).sum(), x)
    compiled: Any = torch.compile(mg.convert(model), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(torch.autograd.grad(compiled(x).sum(), x), expected, rtol=1e-12, atol=1e-14)


@every_module
def test_copies_and_pickles(plain: nn.Module) -> None:
    twin, x = by_hand(plain), numbers(4, 3)
    for loaded in (copy.deepcopy(twin), pickle.loads(pickle.dumps(twin))):
        assert type(loaded) is type(twin)
        assert torch.equal(loaded(x * 1), twin(x * 1))
        assert mg.revert(loaded) is loaded and type(loaded) is type(plain)


@every_module
@pytest.mark.parametrize("overwritten", ["z", "a"])
def test_what_may_be_overwritten_is_what_it_was(plain: nn.Module, overwritten: str) -> None:
    """The module saves what PyTorch's own saves: z or a, so that the other one may be written over."""

    def gradient(module: nn.Module) -> Tensor | str:
        z = x * 1
        a = module(z)
        (z if overwritten == "z" else a).add_(1)
        try:
            return torch.autograd.grad(a.square().sum(), x)[0]
        except RuntimeError as error:
            return str(error).split(" is at version")[0].rpartition("which is")[0]

    x = numbers(4, 3)
    expected, actual = gradient(plain), gradient(by_hand(plain))
    if isinstance(expected, str):
        assert actual == expected and "modified by an inplace operation" in expected
    else:
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-14)


@every_module
def test_no_more_is_kept_than_by_pytorch(plain: nn.Module) -> None:
    def saved(module: nn.Module) -> list[Any]:
        kept: list[Any] = []

        def pack(t: Tensor) -> Tensor:
            kept.append(t.shape)
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            module(numbers(4, 3) + 1)
        return kept

    assert len(saved(by_hand(plain))) == len(saved(plain)) == 1


def test_an_attribute_that_is_changed_later_counts() -> None:
    twin, x = by_hand(nn.LeakyReLU(0.1)), numbers(4)
    twin(x)
    twin.negative_slope = 0.5
    assert torch.equal(twin(x), nn.functional.leaky_relu(x, 0.5))
    assert torch.equal(torch.autograd.grad(twin(x).sum(), x)[0], torch.where(x > 0, 1.0, 0.5).double())
    sigma = twin_of(twin)
    assert sigma is not None and sigma.name == "leaky_relu(0.5)"


@pytest.mark.parametrize("inplace", [False, True])
def test_in_place_on_a_leaf_a_view_and_without_a_gradient(inplace: bool) -> None:
    plain = nn.ReLU(inplace)
    twin, x = by_hand(plain), numbers(4, 6)
    for module in (plain, twin):
        if inplace:
            with pytest.raises(
                RuntimeError, match="a leaf Variable that requires grad is being used in an in-place operation"
            ):
                module(x)
            assert (x < 0).any()  # before anything has changed
    views = [x * 1, x * 1]
    for base, module in zip(views, (plain, twin), strict=True):
        module(base[:, 2:4])
    assert torch.equal(*views)
    grads = [torch.autograd.grad(base.square().sum(), x)[0] for base in views]
    assert torch.equal(*grads)
    constant = torch.tensor([-1.0, 1.0])
    assert (twin(constant) is constant) == inplace


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_tensors_that_are_not_plain_are_left_to_pytorch() -> None:
    twin = by_hand(nn.ReLU())
    nested = torch.nested.nested_tensor([torch.tensor([-1.0, 1.0]), torch.tensor([2.0])], requires_grad=True)
    twin(nested).to_padded_tensor(0.0).sum().backward()
    assert twin(torch.tensor([-1, 2])).tolist() == [0, 2]
    sparse = torch.eye(2).to_sparse().requires_grad_()
    assert twin(sparse).is_sparse
    complexes = torch.randn(3, dtype=torch.complex128, requires_grad=True)
    assert torch.autograd.gradcheck(by_hand(nn.Tanh()), complexes)
    assert torch.autograd.gradcheck(by_hand(nn.Sigmoid()), complexes)


def test_by_autograd_switches_them_off() -> None:
    from manualgrad.autograd.switch import by_autograd, something_stood_back

    x, twin = numbers(3), by_hand(nn.ReLU())
    with by_autograd():
        assert twin(x).grad_fn.name() == "ReluBackward0"
        assert something_stood_back()
    assert twin(x).grad_fn.name().startswith("ActivationFunction")
