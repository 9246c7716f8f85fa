"""What people and PyTorch do to `p.grad`, done to a factored one: a dense one's result, or a sentence that says what to do."""

import copy
import gc
import io
import threading
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn, optim
from torch.nn.utils import clip_grad_norm_, clip_grad_value_, get_total_norm, parameters_to_vector
from torch.utils.checkpoint import checkpoint

import manualgrad as mg
from tests.factored.nets import assert_same_weights, batch, net, train, twin


pytestmark = [
    pytest.mark.usefixtures("small_weights_too"),
    pytest.mark.filterwarnings("ignore::manualgrad.FactorsLostWarning"),
]


def gradient() -> mg.FactoredGradient:
    generator = torch.Generator().manual_seed(0)
    return mg.FactoredGradient(torch.randn(2, 4, generator=generator), torch.randn(2, 5, generator=generator))


def backward(model: nn.Module, rows: int = 3, seed: int = 1) -> Tensor:
    x, y = batch(rows, seed)
    loss = nn.functional.mse_loss(model(x), y)
    loss.backward()
    return loss


def pair() -> tuple[mg.MLP, nn.Sequential]:
    model = mg.keep_factored(net())
    return model, twin(model)


def assert_same_gradients(model: nn.Module, other: nn.Module) -> None:
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert p.grad is not None and q.grad is not None
        value = p.grad.to_dense() if isinstance(p.grad, mg.FactoredGradient) else p.grad
        torch.testing.assert_close(value, q.grad, rtol=1e-12, atol=1e-14)


OPTIMIZERS: dict[str, Callable[[Any], optim.Optimizer]] = {
    "AdamW foreach": lambda ps: optim.AdamW(ps, lr=0.01, foreach=True),
    "Adam fused": lambda ps: optim.Adam(ps, lr=0.01, fused=True),
    "RMSprop": lambda ps: optim.RMSprop(ps, lr=0.01, momentum=0.9, centered=True),
    "Adagrad": lambda ps: optim.Adagrad(ps, lr=0.01),
    "Adafactor": lambda ps: optim.Adafactor(ps, lr=0.01),
    "Rprop foreach": lambda ps: optim.Rprop(ps, lr=0.01, foreach=True),
    "NAdam": lambda ps: optim.NAdam(ps, lr=0.01),
    "ASGD": lambda ps: optim.ASGD(ps, lr=0.01),
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_other_optimizers_train_as_on_dense_gradients(make: Callable[[Any], optim.Optimizer]) -> None:
    model, other = pair()
    for one in (model, other):
        train(one, make(one.parameters()), steps=4)
    assert_same_weights(model, other)


def test_lbfgs() -> None:
    model, other = pair()
    for one in (model, other):
        optimizer = optim.LBFGS(one.parameters(), lr=0.1, max_iter=4)

        def closure(one: nn.Module = one, optimizer: optim.Optimizer = optimizer) -> Tensor:
            optimizer.zero_grad()
            return backward(one)

        for _ in range(3):
            optimizer.step(closure)
    assert_same_weights(model, other, 1e-9)


def test_two_optimizers_over_the_same_parameters() -> None:
    model = net()
    other = twin(model)
    for one, make in ((model, mg.GradientDescent), (other, optim.SGD)):
        first, second = make(one.parameters(), lr=0.1), make(one.parameters(), lr=0.05, momentum=0.9)
        third = optim.Adam(one.parameters(), lr=0.01)
        for i in range(3):
            first.zero_grad()
            backward(one, seed=i)
            for optimizer in (first, second, third, first):  # the third makes gradients dense
                optimizer.step()
    assert_same_weights(model, other)


def test_an_optimizer_deleted_while_its_gradients_live() -> None:
    model = net()
    other = twin(model)
    optimizer = mg.GradientDescent(model.parameters(), lr=0.1)
    backward(model)
    del optimizer
    gc.collect()
    backward(model, seed=2)  # a dense gradient onto a factored one
    backward(other)
    backward(other, seed=2)
    assert_same_gradients(model, other)


@pytest.mark.parametrize("rows", [(3, 60), (60, 3), (3, 60, 3)], ids=str)
def test_factored_and_dense_gradients_accumulate_in_any_order(rows: tuple[int, ...]) -> None:
    model, other = pair()
    for one in (model, other):
        for i, r in enumerate(rows):
            backward(one, r, seed=i)
    assert_same_gradients(model, other)


def test_an_optimizer_in_the_backward_pass() -> None:
    model = net()
    other = twin(model)
    for one, make in ((model, mg.GradientDescent), (other, optim.SGD)):
        optimizers = {p: make([p], lr=0.1) for p in one.parameters()}

        def update(p: Tensor, optimizers: dict[Tensor, optim.Optimizer] = optimizers) -> None:  # type: ignore[assignment]
            optimizers[p].step()
            optimizers[p].zero_grad()

        for p in optimizers:
            p.register_post_accumulate_grad_hook(update)
        for i in range(3):
            backward(one, seed=i)
    assert_same_weights(model, other)


HOOKS: dict[str, Callable[[Tensor], Tensor | None]] = {
    "in place": lambda g: g.mul_(3),
    "out of place": lambda g: g / 7,
    "every entry": lambda g: g.clamp(-0.001, 0.001),
    "looks only": lambda g: None,
    "a tensor of its own": lambda g: torch.ones_like(g),
}


@pytest.mark.parametrize("hook", HOOKS.values(), ids=HOOKS)
def test_tensor_hooks(hook: Callable[[Tensor], Tensor | None]) -> None:
    model, other = pair()
    norms: list[list[float]] = []
    for one in (model, other):
        seen: list[float] = []
        norms.append(seen)
        weight: Any = one[0].weight
        weight.register_hook(hook)
        torch.autograd.graph.register_multi_grad_hook(
            list(one.parameters()), lambda gradients, seen=seen: seen.extend(float(g.norm()) for g in gradients)
        )
        backward(one)
        backward(one, seed=2)
    assert_same_gradients(model, other)
    assert norms[0] == pytest.approx(norms[1])


def test_checkpointing_offloading_and_threads() -> None:
    model, other = pair()
    for one in (model, other):
        x, y = batch()
        nn.functional.mse_loss(checkpoint(one, x, use_reentrant=False), y).backward()
        with torch.autograd.graph.save_on_cpu():
            loss = nn.functional.mse_loss(one(x), y)
        loss.backward()
        threads = [threading.Thread(target=backward, args=(one,), kwargs={"seed": i}) for i in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert_same_gradients(model, other)


def test_a_batch_of_upstream_gradients_gives_plain_ones() -> None:
    model, other = pair()
    results: list[Tensor] = []
    for one in (model, other):
        z = one(batch()[0])
        upstream = torch.stack([torch.ones_like(z), z.detach()])
        results += torch.autograd.grad(z, next(one.parameters()), grad_outputs=upstream, is_grads_batched=True)
    assert type(results[0]) is Tensor
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-14)


def test_what_is_made_of_a_gradient_has_no_history() -> None:
    model, _ = pair()
    backward(model)
    g: Any = model[1].weight.grad  # its `a` is the first layer's output, which has one
    assert not any(x.requires_grad for x in (g.a, g.delta, g.to_dense(), g.per_sample_norms()))
    assert np.asarray(g).shape == (30, 50)


def test_all_of_a_model_in_one_vector_or_norm() -> None:
    model, other = pair()
    vectors, norms = [], []
    for one in (model, other):
        backward(one)
        gradients = [p.grad for p in one.parameters() if p.grad is not None]
        norms += [get_total_norm(gradients, order, foreach=foreach) for order in (1, 2) for foreach in (None, True)]
        clip_grad_norm_(one.parameters(), 0.1, foreach=True)
        clip_grad_value_(one.parameters(), 0.001, foreach=True)
        vectors.append(parameters_to_vector([p.grad for p in one.parameters() if p.grad is not None]))
    torch.testing.assert_close(norms[:4], norms[4:], rtol=1e-12, atol=0)
    torch.testing.assert_close(*vectors, rtol=1e-12, atol=1e-14)


def test_averaged_copies_of_a_model_with_live_gradients() -> None:
    model, other = pair()
    for one in (model, other):
        averaged = optim.swa_utils.AveragedModel(one, multi_avg_fn=optim.swa_utils.get_ema_multi_avg_fn(0.9))
        optimizer = optim.SGD(one.parameters(), lr=0.1)
        for i in range(3):
            optimizer.zero_grad()
            backward(one, seed=i)
            optimizer.step()
            averaged.update_parameters(one)
        one.load_state_dict(averaged.module.state_dict())
    assert_same_weights(model, other)


ESCAPES: dict[str, Callable[[Any], Any]] = {  # they reach for memory that a factored gradient does not have
    "torch.from_dlpack": torch.from_dlpack,
    "np.from_dlpack": lambda g: torch.from_numpy(np.array(np.from_dlpack(g))),
    "np.asarray": lambda g: torch.from_numpy(np.asarray(g)),
    "apply_": lambda g: g.apply_(lambda x: x + 1),
    "share_memory_": lambda g: g.share_memory_(),
    "pin": lambda g: torch.tensor(g.is_pinned()),
    "as_strided": lambda g: g.as_strided((2, 2), (1, 1)),
    "another dtype's view": lambda g: g.view(torch.int32),
    "stack": lambda g: torch.stack([g, g]),
    "out": lambda g: torch.add(torch.ones(4, 5), 1, out=g),
}


@pytest.mark.parametrize("escape", ESCAPES.values(), ids=ESCAPES)
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")
def test_nobody_reads_memory_that_is_not_there(escape: Callable[[Any], Any]) -> None:
    result = escape(gradient())
    value = result.to_dense() if isinstance(result, mg.FactoredGradient) else result
    assert torch.equal(value, escape(gradient().to_dense()))


def test_a_module_with_live_gradients_is_shared() -> None:
    model, other = pair()
    for one in (model, other):
        backward(one)
        one.share_memory()
    assert_same_gradients(model, other)


def test_a_saved_gradient_holds_its_own_rows_alone() -> None:
    data = torch.randn(1000, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    model, _ = pair()
    model(data[:3]).sum().backward()
    g: Any = model[0].weight.grad
    file = io.BytesIO()
    torch.save(g, file)
    assert len(file.getvalue()) < 10_000 < data.nbytes
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=True).to_dense(), g.to_dense())


USES: dict[str, Callable[[Any], Any]] = {
    "step": lambda model: optim.SGD(model.parameters(), lr=0.1).step(),
    "clip": lambda model: clip_grad_norm_(model.parameters(), 1.0),
    "accumulate": lambda model: (backward(model), optim.SGD(model.parameters(), lr=0.1).step()),
    "a": lambda model: model[0].weight.grad.a,
    "to_dense": lambda model: model[0].weight.grad.to_dense(),
    "per_sample_norms": lambda model: model[0].weight.grad.per_sample_norms(),
    "sum": lambda model: model[0].weight.grad.sum(),
    "deepcopy": lambda model: copy.deepcopy(model[0].weight.grad),
    "save": lambda model: torch.save(model[0].weight.grad, io.BytesIO()),
    "convert": lambda model: model.float(),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_a_buffer_filled_too_early_is_noticed_by_every_use(use: Callable[[Any], Any]) -> None:
    model, _ = pair()
    buffer, y = batch()
    nn.functional.mse_loss(model(buffer), y).backward()
    buffer.normal_()
    with pytest.raises(
        RuntimeError, match=r"^A factored gradient expected its factor `a` \(3, 40\) unchanged until its use"
    ):
        use(model)


def test_a_buffer_may_be_filled_again_after_the_step() -> None:
    model, other = pair()
    for one in (model, other):
        optimizer, buffer = optim.SGD(one.parameters(), lr=0.1), torch.empty(3, 40, dtype=torch.float64)
        for i in range(3):
            x, y = batch(seed=i)
            buffer.copy_(x)
            optimizer.zero_grad()
            nn.functional.mse_loss(one(buffer), y).backward()
            optimizer.step()
    assert_same_weights(model, other)


def test_a_frozen_layer_thaws() -> None:
    model = net()
    optimizer = mg.GradientDescent(model.parameters(), lr=0.1)
    model[0].requires_grad_(False)
    backward(model)
    assert model[0].weight.grad is None
    model[0].requires_grad_(True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(model, optimizer, steps=1)
    assert isinstance(model[0].weight.grad, mg.FactoredGradient)
