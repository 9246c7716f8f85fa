"""Copies to run a training step on: of modules that keep what copy.deepcopy refuses."""

import functools
import threading
from collections import deque
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import manualgrad as mg
from manualgrad.dry_run import CannotCopyError, deep_copied


@dataclass
class State:
    lock: Any
    loss: Any = None


class Keeps(nn.Module):
    """Locks, generators, an open file, outputs with their history in many places."""

    def __init__(self, uses_iterator: bool = False) -> None:
        super().__init__()
        self.layer = mg.Dense(3, 2)
        self.lock, self.reentrant, self.event = threading.Lock(), threading.RLock(), threading.Event()
        self.generator = torch.Generator().manual_seed(3)
        self.iterator = (i for i in range(100))
        self.file = open("/dev/null")  # noqa: SIM115
        self.state, self.last, self.outputs = State(threading.Lock()), deque[Tensor](maxlen=2), list[Tensor]()
        self.nested: dict[str, Any] = {"a": [{"b": None}]}
        self.note: Any = self.remember
        self.part = functools.partial(print, self.lock)
        self.uses_iterator = uses_iterator

    def remember(self, y: Tensor) -> None:
        self.outputs.append(y)

    def forward(self, x: Tensor) -> Tensor:
        with self.lock, self.reentrant, self.state.lock:
            y = self.layer(x) + torch.randn(2, generator=self.generator)
        self.note(y)
        self.last.append(y)
        self.state.loss = self.nested["a"][0]["b"] = y.sum()
        return y + next(self.iterator) if self.uses_iterator else y


@pytest.fixture
def kept() -> Any:
    module = Keeps()
    yield module
    module.file.close()


def test_what_a_step_needs_is_copied(kept: Keeps) -> None:
    kept(torch.randn(4, 3))
    state = kept.generator.get_state()
    copy = deep_copied(kept)
    assert copy.note.__self__ is copy and copy.lock is not kept.lock
    assert not any(y.requires_grad for y in (*copy.outputs, *copy.last, copy.state.loss, copy.nested["a"][0]["b"]))
    assert mg.compare(kept, nn.MSELoss(), torch.randn(4, 3), torch.randn(4, 2)).ok
    assert torch.equal(kept.generator.get_state(), state) and len(kept.outputs) == len(kept.last) == 1
    assert next(kept.iterator) == 0
    assert kept.outputs[0].requires_grad


def test_what_cannot_be_copied_raises_where_the_step_uses_it(kept: Keeps) -> None:
    kept.uses_iterator = True
    with pytest.raises(CannotCopyError) as error:
        mg.compare(kept, nn.MSELoss(), torch.randn(4, 3), torch.randn(4, 2))
    assert str(error.value) == (
        "The step uses a `generator` that the module keeps and that cannot be copied "
        "(TypeError: cannot pickle 'generator' object)."
    )
    assert next(kept.iterator) == 0


class Sharded(nn.Linear):
    def __deepcopy__(self, memo: dict) -> None:
        raise RuntimeError("Sharded does not support deepcopy. Use state_dict")


def test_a_module_that_refuses_says_so_in_a_sentence() -> None:
    with pytest.raises(CannotCopyError) as error:
        mg.compare(nn.Sequential(Sharded(3, 2)), nn.MSELoss(), torch.randn(4, 3), torch.randn(4, 2))
    assert str(error.value) == ("Sequential cannot be copied (RuntimeError: Sharded does not support deepcopy).")


def pruned() -> nn.Module:
    model = nn.Sequential(mg.Dense(3, 4, activation="tanh"), mg.Dense(4, 2))
    prune.l1_unstructured(model[0], "weight", amount=4)
    prune.random_unstructured(model[1], "weight", amount=0.5)
    return model


def normed() -> nn.Module:
    return nn.Sequential(parametrizations.spectral_norm(mg.Dense(3, 4)), parametrizations.weight_norm(mg.Dense(4, 2)))


@pytest.mark.parametrize("make", [pruned, normed])
@pytest.mark.parametrize("with_lock", [False, True])
def test_pruned_and_parametrized_modules(make: Any, with_lock: bool) -> None:
    model = make()
    if with_lock:
        model[0].lock = threading.Lock()
    model(torch.randn(4, 3)).sum().backward()
    assert mg.compare(model, nn.MSELoss(), torch.randn(4, 3), torch.randn(4, 2)).ok
