"""Checks of memory: what a layer changes in place, keeps and leaks, and whether two runs agree to the last bit."""

import gc
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from manualgrad.conformance.case import Case, gradients, outputs, outputs_and_gradients, upstream
from manualgrad.conformance.diagnosis import expect_equal
from manualgrad.conformance.graph import handwritten
from manualgrad.conformance.result import Failed


def in_place(case: Case) -> str:
    """Inputs, upstream gradient and saved tensors are as they were, and the output is no view of an input."""
    leaves = case.leaves()
    before = [x._version if isinstance(x, Tensor) else 0 for x in leaves]
    results = outputs(case.layer, leaves)
    _expect_untouched(case, leaves, before, "forward")
    sent = upstream([x for x in results if x.requires_grad])
    kept = [g.clone() for g in sent]
    first = gradients(results, leaves, sent, retain_graph=True)
    first = [g.clone() for g in first]
    for g, copy in zip(sent, kept, strict=True):
        if g._version or not torch.equal(g, copy):
            raise Failed("backward changes the upstream gradient in place", _UPSTREAM)
    _expect_untouched(case, leaves, before, "backward")
    second = gradients(results, leaves, sent)
    names = [f"the gradient by {case.names[i]}, in a second backward pass," for i in case.differentiable]
    expect_equal(names, second, first, line=_TWICE, note=": backward changes a saved tensor in place")
    places = {x.untyped_storage().data_ptr(): i for i, x in enumerate(leaves) if isinstance(x, Tensor) and x.numel()}
    theirs = case.leaves()
    if not any(x._base is not None or any(x is y for y in theirs) for x in outputs(case.reference, theirs)):
        for x in results:
            if x.numel() and x.untyped_storage().data_ptr() in places:
                raise Failed(
                    f"the output shares its memory with {case.names[places[x.untyped_storage().data_ptr()]]}", _SHARED
                )
    return "inputs, upstream gradient and saved tensors untouched"


_UPSTREAM = (
    "y = layer(*inputs); g = torch.randn_like(y); h = g.clone(); "
    "torch.autograd.grad(y, wanted, g); print((g - h).abs().max())"
)
_TWICE = (
    "y = layer(*inputs).abs().square().sum(); "  # upstream gradients of 1 might hide it
    "print(*(torch.autograd.grad(y, wanted, retain_graph=True) for _ in range(2)), sep='\\n')"
)
_SHARED = (
    "y = layer(*inputs); print([x.untyped_storage().data_ptr() == y.untyped_storage().data_ptr() for x in inputs])"
)


def _expect_untouched(case: Case, leaves: list[Any], before: list[int], phase: str) -> None:
    for name, value, leaf, version in zip(case.names, case.values, leaves, before, strict=True):
        if isinstance(leaf, Tensor) and (leaf._version != version or not torch.equal(leaf.detach(), value.detach())):
            raise Failed(
                f"{phase} changes {name} in place",
                "before = [x.clone() for x in inputs]; layer(*inputs).sum().backward(); "
                "print([torch.equal(x, y) for x, y in zip(inputs, before)])",
            )


def leak(case: Case) -> str:
    """No tensor outlives 100 calls."""
    ours = _survivors(case, case.layer)
    if ours >= 50 and ours > 2 * _survivors(case, case.reference):
        raise Failed(
            f"{ours} tensors outlive 100 calls: an output kept on ctx or in a list? Use ctx.save_for_backward",
            "import gc; gc.collect(); gc.disable(); n = len(gc.get_objects()); [layer(*inputs) for _ in range(100)]; "
            "print(len(gc.get_objects()) - n, 'objects outlive 100 calls')",
        )
    return "nothing outlives 100 calls"


def _survivors(case: Case, function: Any) -> int:
    """How many new tensors are alive after 100 calls, half of them with a backward pass."""
    leaves = case.leaves()
    outputs(function, leaves)  # what is made once is no leak
    was_enabled = gc.isenabled()
    gc.disable()
    gc.freeze()  # so that only new objects are looked at
    try:
        for i in range(100):
            results = outputs(function, leaves)
            if i % 2:
                gradients(results, leaves)
            del results
        return sum(issubclass(type(x), Tensor) for x in gc.get_objects())
    finally:
        gc.unfreeze()
        if was_enabled:
            gc.enable()


def saved(case: Case) -> str:
    """At most twice as many bytes saved for the backward pass as by the reference. Inputs do not count."""
    ours, theirs = _saved_bytes(case, case.layer), _saved_bytes(case, case.reference)
    nodes = handwritten(outputs(case.layer, case.leaves()))
    attributes = [name for node in nodes for name, value in vars(node).items() if isinstance(value, Tensor)]
    if attributes:
        raise Failed(
            f"ctx.{attributes[0]} is a tensor: out of reach of saved_tensors_hooks and checkpointing, and a leak if it is the "
            "output. Use ctx.save_for_backward",
            "y = layer(*inputs); print({k: v for k, v in vars(y.grad_fn).items() if isinstance(v, torch.Tensor)})",
        )
    if ours > 2 * theirs + 64:
        raise Failed(
            f"{ours} bytes kept for the backward pass, the reference keeps {theirs}",
            "with torch.autograd.graph.saved_tensors_hooks(lambda x: print(x.shape) or x, lambda x: x): layer(*inputs)",
        )
    return f"{ours} bytes besides the inputs, the reference {theirs}"


def _saved_bytes(case: Case, function: Any) -> int:
    leaves = case.leaves()
    own = {x.untyped_storage().data_ptr() for x in leaves if isinstance(x, Tensor)}
    kept: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return x

    with saved_tensors_hooks(pack, lambda x: x):
        results = outputs(function, leaves)
    total = sum(kept.values())
    del results
    return total


def determinism(case: Case) -> str:
    """The same numbers twice, to the last bit."""
    runs = (outputs_and_gradients(case.layer, case.leaves()) for _ in range(2))
    for x, y in zip(*runs, strict=True):
        if not torch.equal(x.nan_to_num(), y.nan_to_num()):
            raise Failed("two runs from the same random state differ", "print(layer(*inputs) - layer(*inputs))")
    return "equal to the last bit"
