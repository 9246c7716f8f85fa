"""What is asked of `DistributedDataParallel` beside its documented interface. All of it is asked here.

DDP has a list of parameters that it leaves alone, made for extensions like this one; it has no public name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parallel.distributed import _find_tensors


_IGNORED = "_ddp_params_and_buffers_to_ignore"


def ignored(model: nn.Module) -> set[str]:
    """The names of what DDP has been told to leave alone."""
    return set(getattr(model, _IGNORED, ()))


def set_ignored(model: nn.Module, names: Iterable[str]) -> None:
    """Tell DDP, which is going to wrap the model, what to leave alone: parameters under all of their names."""
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, sorted(names))


def names_of(model: nn.Module, parameters: Iterable[Tensor]) -> set[str]:
    """Every name under which DDP may look for one of the parameters: it writes `.weight` for the root's own."""
    wanted = {id(p) for p in parameters}
    names = set()
    for path, module in model.named_modules(remove_duplicate=False):
        for name, p in module.named_parameters(recurse=False, remove_duplicate=False):
            if id(p) in wanted:
                names |= {f"{path}.{name}", f"{path}.{name}".removeprefix(".")}
    return names


def running() -> DistributedDataParallel | None:
    """The DDP module whose forward pass this is."""
    return DistributedDataParallel._active_ddp_module


def leaves_alone(ddp: DistributedDataParallel, names: Iterable[str]) -> bool:
    return ddp.parameters_to_ignore.issuperset(names)


def shadows_joined_processes(ddp: DistributedDataParallel) -> bool:
    """Whether this is inside `ddp.join()`, which stands in for processes that have run out of batches."""
    return ddp._join_config.enable and not ddp._join_config.throw_on_early_termination


def tensors_in(output: Any) -> list[Tensor]:
    """The tensors that DDP finds in what a model returns: in lists, tuples, dicts and dataclasses."""
    return list(_find_tensors(output))


def at_the_end_of_backward(function: Callable[[], None]) -> None:
    """Call the function once the running backward pass is complete; for a hook to call."""
    torch.autograd.Variable._execution_engine.queue_callback(function)


def backward_pass() -> int:
    """A number that tells one running backward pass from another, and from one nested in it."""
    return torch._C._current_graph_task_id()


def check_same_everywhere(group: dist.ProcessGroup, parameters: list[nn.Parameter]) -> None:
    """Raises RuntimeError, as DDP does, where the processes have different numbers of parameters, or other shapes."""
    dist._verify_params_across_processes(group, parameters, None)  # type: ignore[arg-type]


def twin_of(group: dist.ProcessGroup, device: torch.device) -> dist.ProcessGroup:
    """A group of the same processes with the same timeout: its collectives cannot be taken for DDP's."""
    timeout: timedelta = group._get_backend(device).options._timeout
    ranks = dist.get_process_group_ranks(group)
    backend = dist.get_backend_config(group)
    return dist.new_group(ranks, timeout, backend, use_local_synchronization=True, group_desc="manualgrad_factors")


# Each process's tensor, one behind the other, in all processes. Renamed in PyTorch 2.13, where the old name warns.
all_gather: Callable[..., Any] = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
