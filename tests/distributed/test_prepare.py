"""What exchange_factors refuses, and where it leaves DDP alone; one process is enough for that."""

import copy
import io
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import manualgrad as mg
from manualgrad.distributed import exchange_factors
from manualgrad.distributed.exchange import exchange_of


pytestmark = [
    pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo"),
    pytest.mark.usefixtures("small_weights_too"),
]


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    rendezvous = f"file://{tmp_path / 'rendezvous'}"
    dist.init_process_group("gloo", rendezvous, rank=0, world_size=1, timeout=timedelta(seconds=30))
    yield
    dist.destroy_process_group()


def net() -> mg.MLP:
    return mg.MLP([6, 5, 4], "tanh")


def test_no_process_group() -> None:
    with pytest.raises(RuntimeError) as error:
        exchange_factors(net())
    assert str(error.value) == (
        "exchange_factors expected an initialised process group, got none. "
        "Call torch.distributed.init_process_group first (torchrun sets what it needs)."
    )


def test_no_module(alone: None) -> None:
    with pytest.raises(
        TypeError, match="^exchange_factors expected a torch.nn.Module, got list. Pass the model itself.$"
    ):
        exchange_factors([net()])  # type: ignore[type-var]


def test_a_wrapped_model(alone: None) -> None:
    with pytest.raises(TypeError) as error:
        exchange_factors(DistributedDataParallel(net()))
    assert str(error.value) == (
        "exchange_factors expected a model that is not wrapped yet, got DistributedDataParallel. "
        "Write DistributedDataParallel(exchange_factors(model))."
    )


def test_after_ddp(alone: None) -> None:
    model = net()
    wrapper = DistributedDataParallel(model)
    exchange_factors(model)
    with pytest.raises(RuntimeError) as error:
        wrapper(torch.ones(2, 6))
    assert str(error.value) == (
        "exchange_factors expected to be called before DistributedDataParallel, got a model that was wrapped already. "
        "Write DistributedDataParallel(exchange_factors(model, process_group), process_group=process_group)."
    )


def test_a_part_of_what_ddp_wraps(alone: None) -> None:
    model = nn.Sequential(exchange_factors(net()), nn.Linear(4, 2))
    with pytest.raises(
        RuntimeError, match="expected the very module that DistributedDataParallel wraps, got a part of it"
    ):
        DistributedDataParallel(model)(torch.ones(2, 6))


def test_twice(alone: None) -> None:
    model = exchange_factors(net())
    with pytest.raises(RuntimeError) as error:
        exchange_factors(model)
    assert str(error.value) == (
        "exchange_factors expected a model whose factors are not exchanged yet, got one that it was called on before. "
        "Call it once, before DistributedDataParallel."
    )


def test_sharded_weights(alone: None) -> None:
    model = net()
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    with pytest.raises(TypeError) as error:
        exchange_factors(model)
    assert str(error.value) == (
        "exchange_factors expected whole parameters in every process, got '0.weight' sharded (fully_shard or "
        "parallelize_module). Their gradients are averaged already: leave out exchange_factors."
    )


def test_lazy_weights(alone: None) -> None:
    with pytest.raises(RuntimeError, match="expected initialised parameters, got '0.weight' without a shape"):
        exchange_factors(nn.Sequential(mg.LazyDense(3)))


@pytest.mark.parametrize(
    "bandwidth, error", [("fast", TypeError), (True, TypeError), (0, ValueError), (float("nan"), ValueError)]
)
def test_a_bandwidth_that_is_none(bandwidth: object, error: type[Exception], alone: None) -> None:
    with pytest.raises(error, match="Pass bytes a second, such as 1.25e8 for 1 Gb/s.$"):
        exchange_factors(net(), bandwidth=bandwidth)  # type: ignore[arg-type]


def test_another_process_group(alone: None) -> None:
    model = exchange_factors(net(), dist.new_group([0]))
    DistributedDataParallel(model)(torch.ones(2, 6)).sum().backward()  # of the same processes: allowed


def test_join(alone: None) -> None:
    wrapper = DistributedDataParallel(exchange_factors(net()))
    with pytest.raises(RuntimeError) as error, wrapper.join():
        wrapper(torch.ones(2, 6))
    assert str(error.value) == (
        "exchange_factors expected every process to run the same number of batches, got DistributedDataParallel.join(), "
        "which would stand in for a process without batches in DDP's collectives only. Give each process as many batches, "
        "empty ones if need be, or use join(throw_on_early_termination=True)."
    )
    with wrapper.join(throw_on_early_termination=True):
        wrapper(torch.ones(2, 6)).sum().backward()


def test_a_parameter_replaced_afterwards(alone: None) -> None:
    model = exchange_factors(net())
    wrapper = DistributedDataParallel(model)
    model[0].weight = nn.Parameter(torch.ones(5, 6))
    with pytest.raises(
        RuntimeError, match="parameters that the model had when it was called, got another one as '0.weight'"
    ):
        wrapper(torch.ones(2, 6))


def test_train_step(alone: None) -> None:
    model = exchange_factors(net())
    with pytest.raises(TypeError, match="TrainStep expected modules without hooks"):
        mg.TrainStep(model, mg.QuadraticLoss(), mg.GradientDescent(model.parameters(), lr=0.1))


def test_copies_say_that_they_exchange_nothing(alone: None) -> None:
    model = exchange_factors(net())
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for copied in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        copied(torch.ones(2, 6)).sum().backward()  # by itself it is a model as any other
        with pytest.raises(RuntimeError, match="it is a copy of a model that was given to exchange_factors"):
            DistributedDataParallel(copied)(torch.ones(2, 6))
        DistributedDataParallel(exchange_factors(copied))(torch.ones(2, 6)).sum().backward()


def test_ddp_leaves_alone_what_is_exchanged_and_no_more(alone: None) -> None:
    model = exchange_factors(nn.Sequential(mg.Dense(6, 5), nn.Linear(5, 4), mg.Dense(4, 3, bias=False)))
    wrapper = DistributedDataParallel(model)
    averaged = [name for name, p in model.named_parameters() if any(p is q for q in wrapper._module_parameters)]
    assert averaged == ["0.bias", "1.weight", "1.bias"]


def test_what_the_user_had_ddp_leave_alone_is_not_exchanged(alone: None) -> None:
    model = net()
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, ["0.weight"])
    exchange = exchange_of(exchange_factors(model))
    assert exchange is not None and exchange.names == ["1.weight"]


def test_state_dicts_are_as_before(alone: None) -> None:
    assert exchange_factors(net()).state_dict().keys() == net().state_dict().keys()
