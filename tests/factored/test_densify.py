"""What has no rule for factors: the gradient becomes dense, the warning says for whom and what to do, and nothing crashes."""

import inspect
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import manualgrad as mg
from tests.factored.nets import batch, net


pytestmark = pytest.mark.usefixtures("small_weights_too", "nobody_was_warned")


@pytest.fixture
def nobody_was_warned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("manualgrad.factored.densify._warned", set())


def gradient(dtype: torch.dtype = torch.float32) -> mg.FactoredGradient:
    generator = torch.Generator().manual_seed(0)
    delta, a = (torch.randn(2, k, generator=generator).to(dtype) for k in (4, 5))
    return mg.FactoredGradient(delta, a)


class Reader(torch.optim.Optimizer):
    """An optimizer of somebody's own that reads every entry."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(p.grad.sort().values)


def test_the_warning_names_the_optimizer_and_the_line_that_called_it() -> None:
    model = mg.keep_factored(net())
    optimizer = Reader(model.parameters())
    x, y = batch()
    nn.functional.mse_loss(model(x), y).backward()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        optimizer.step(); line = inspect.currentframe().f_lineno  # type: ignore[union-attr]  # noqa: E702  # fmt: skip
    assert [str(w.message) for w in caught] == [
        "Reader needs every entry of a factored gradient of shape (50, 40) (for sort), which becomes dense and as large as its "
        "weight. If that is too much memory, train with an optimizer that reads gradients entry by entry, as those of "
        "torch.optim do but LBFGS; if it is not, mg.keep_factored(model, False) asks for dense gradients."
    ]
    assert caught[0].filename == __file__ and caught[0].lineno == line


def test_the_warning_names_the_operation_where_there_is_no_optimizer() -> None:
    with pytest.warns(mg.FactorsLostWarning) as caught:
        gradient().sort()
    assert [str(w.message) for w in caught] == [
        "sort needs every entry of a factored gradient of shape (4, 5), which becomes dense and as large as its weight. If that "
        "is too much, read .delta and .a or .norm() instead, or work on gradient.to_dense()."
    ]
    assert caught[0].filename == __file__


def test_one_warning_for_each_optimizer_and_each_operation() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            gradient().sort()
            gradient().cumsum(0)
            for kind in (Reader, type("Another", (Reader,), {})):
                p = nn.Parameter(torch.zeros(4, 5))
                p.grad = gradient()
                kind([p]).step()
    assert [str(w.message).split()[0] for w in caught] == ["sort", "cumsum", "Reader", "Another"]


def test_forbidding_it_holds_in_every_thread_and_ends_with_the_last_block() -> None:
    first, second = mg.forbid_densify(), mg.forbid_densify()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    with pytest.raises(RuntimeError, match=r"which would become dense .* \(inside forbid_densify\(\)\)$"):
        gradient().sort()
    second.__exit__(None, None, None)
    with pytest.warns(mg.FactorsLostWarning):
        gradient().sort()


READERS: dict[str, Callable[[Any], Any]] = {
    "storage": lambda g: torch.tensor(g.storage().tolist()),
    "untyped_storage": lambda g: torch.tensor(g.untyped_storage().tolist()),
    "a clone of the storage": lambda g: torch.tensor(g.untyped_storage().clone().tolist()),
    "a tensor on the storage": lambda g: torch.tensor([]).set_(g.untyped_storage(), 0, (2, 2), (1, 1)),
    "map_": lambda g: g.map_(torch.ones(4, 5), lambda x, y: x + y),
    "map2_": lambda g: g.map2_(torch.ones(4, 5), torch.ones(4, 5), lambda x, y, z: x + y * z),
}


@pytest.mark.filterwarnings("ignore::manualgrad.FactorsLostWarning")
@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_who_reaches_for_memory_gets_some(read: Callable[[Any], Any]) -> None:
    result = read(gradient())
    value = result.to_dense() if isinstance(result, mg.FactoredGradient) else result
    assert torch.equal(value, read(gradient().to_dense()))


@pytest.mark.filterwarnings("ignore::manualgrad.FactorsLostWarning")
def test_its_pointer_is_that_of_its_entries() -> None:
    for pointer in (lambda g: g.data_ptr(), lambda g: g.untyped_storage().data_ptr()):
        g = gradient()
        assert pointer(g) == g.densify().data_ptr() != 0


REFUSED: dict[str, Callable[[Any], Any]] = {  # these ask nobody, or refuse subclasses altogether
    "to_dlpack": torch.utils.dlpack.to_dlpack,
    "map_ from it": lambda g: torch.ones(4, 5).map_(g, lambda x, y: x + y),
    "map2_ from it": lambda g: torch.ones(4, 5).map2_(g, g, lambda x, y, z: x + y * z),
    "set_": lambda g: torch.ones(4, 5).set_(g),
}


@pytest.mark.parametrize("reach", REFUSED.values(), ids=REFUSED)
def test_who_cannot_be_given_memory_is_refused(reach: Callable[[Any], Any]) -> None:
    # torch 2.6 asks for some of it: then it becomes dense, with a warning
    asks = torch.__version__ < "2.7"
    with pytest.raises((RuntimeError, mg.FactorsLostWarning) if asks else RuntimeError):
        reach(gradient())
