"""PyTorch's private questions, asked in this file alone. Each says what public form is missing, or what speed it buys.

`tests/autograd/test_torch_state.py` asks them of the installed release, so that one that is gone or means something else is
found there first. Private names that are canonical elsewhere (`_version`, `_make_wrapper_subclass`) stand where they are used.
"""

from collections.abc import Callable, Iterable
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch._C import _functorch
from torch._functorch.pyfunctorch import retrieve_all_functorch_interpreters
from torch.autograd import forward_ad
from torch.nn.modules import module as torch_module
from torch.optim import optimizer as torch_optimizer


# Without a public form
are_transforms_active = torch._C._are_functorch_transforms_active  # inside torch.func.grad, vmap, jvp, ...
is_batched_gradient = _functorch.is_legacy_batchedtensor  # of torch.autograd.grad(..., is_grads_batched=True)

# A tensor without memory of its own: readers in C++ that ask nobody (`to_dlpack`) raise instead of following a null pointer.
refuse_pointers = torch._C._set_throw_on_mutable_data_ptr

HOOKS_OF_MODULE = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")

# With a public form that takes several times as long, in every call of a layer or every step
is_any_autocast_enabled = torch._C._is_any_autocast_enabled  # torch.is_autocast_enabled(device_type), device by device
tracing_state = torch._C._get_tracing_state  # torch.jit.is_tracing(); None where it is False
InferenceMode = torch._C._InferenceMode  # torch.inference_mode()


def is_forward_mode_active() -> bool:
    """Whether an output may need a tangent: inside `torch.autograd.forward_ad.dual_level`, or any transform of `torch.func`.
    No public form."""
    return forward_ad._current_level >= 0 or are_transforms_active()


def is_exporting() -> bool:
    """Inside `torch.export`. `torch.compiler.is_exporting` came with torch 2.7; before, an export that is not strict can be told,
    since it compiles without Dynamo."""
    if hasattr(torch.compiler, "is_exporting"):
        return torch.compiler.is_exporting()
    return not torch.compiler.is_dynamo_compiling()


def forward_modes() -> int:
    """How many `torch.func.jvp` (or `jacfwd`) stand around this, one inside the other. No public form."""
    return sum(level.key() == _functorch.TransformType.Jvp for level in retrieve_all_functorch_interpreters())


def graph_executor() -> tuple[Callable[[], bool], Callable[[bool], None]]:
    """Asks and says whether TorchScript optimizes before it runs, in this thread. `torch.jit.optimized_execution` is a
    context manager made of both that takes as long as a small kernel.

    Raises:
        AttributeError: this release has none.
    """
    return torch._C._get_graph_executor_optimize, torch._C._set_graph_executor_optimize


def hooks_of_module(module: nn.Module) -> list[dict[int, Any]]:
    """The tables of hooks of a module, as they will also stand later. No public form."""
    return [getattr(module, name) for name in HOOKS_OF_MODULE]


def hooks_of_every_module() -> list[dict[int, Any]]:
    """The tables of hooks that `torch.nn.modules.module.register_module_...` fills. No public form."""
    return [getattr(torch_module, f"_global{name}") for name in HOOKS_OF_MODULE]


def hooks_of_optimizer(optimizer: torch.optim.Optimizer) -> list[dict[int, Any]]:
    """The tables of hooks before and after its step, and every optimizer's, as they will also stand later. No public form."""
    tables: list[Any] = [optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks]
    return [*tables, torch_optimizer._global_optimizer_pre_hooks, torch_optimizer._global_optimizer_post_hooks]


def before_every_step(hook: Callable[..., None]) -> None:
    """Register a hook of this package's own before every optimizer's step; `is_hooked` does not count it."""
    _own_hooks.add(torch_optimizer.register_optimizer_step_pre_hook(hook).id)


def is_hooked(tables: list[dict[int, Any]]) -> bool:
    """Whether any hook but this package's own stands in the tables of `hooks_of_optimizer`."""
    before, after, before_every, after_every = tables
    return bool(before or after or after_every or (before_every and before_every.keys() != _own_hooks))


_own_hooks: set[int] = set()


def has_hooks(parameters: Iterable[Tensor]) -> bool:
    """Whether a hook would see or change a gradient of these. No public form."""
    parameters = list(parameters)
    return any(map(_hooks_of_tensor, parameters)) or any(map(_later_hooks_of_tensor, parameters))


_hooks_of_tensor, _later_hooks_of_tensor = attrgetter("_backward_hooks"), attrgetter("_post_accumulate_grad_hooks")


def note_step(optimizer: torch.optim.Optimizer) -> None:
    """What `optimizer.step()` leaves for a scheduler, which warns if it comes before the first step. No public form."""
    optimizer._opt_called = True  # type: ignore[attr-defined]
