from typing import Any

import pytest
import torch
from torch.utils.data import DistributedSampler

from manualgrad.lightning import ResumableLoader


TWENTY: Any = range(20)  # a data set of 20 integers


def loader_at(epoch, num_workers=0):
    sampler: DistributedSampler = DistributedSampler(TWENTY, num_replicas=1, rank=0, seed=3)
    sampler.set_epoch(epoch)
    return ResumableLoader(TWENTY, batch_size=4, sampler=sampler, num_workers=num_workers)


def batches(loader):
    return [batch.tolist() for batch in loader]


@pytest.mark.parametrize("delivered", range(6))
@pytest.mark.parametrize("num_workers", [0, 1])
def test_goes_on_where_the_state_was_taken(delivered, num_workers):
    interrupted = loader_at(epoch=2, num_workers=num_workers)
    iterator = iter(interrupted)
    before = [next(iterator).tolist() for _ in range(delivered)] if delivered else []
    resumed = loader_at(epoch=2, num_workers=num_workers)
    resumed.load_state_dict(interrupted.state_dict() if delivered else {"epoch": 2, "delivered": 0})
    assert before + batches(resumed) == batches(loader_at(epoch=2))
    assert len(resumed) == 5


def test_only_the_epoch_of_the_state_is_continued():
    loader = loader_at(epoch=2)
    loader.load_state_dict({"epoch": 1, "delivered": 3})
    assert batches(loader) == batches(loader_at(epoch=2))


def test_the_epoch_after_the_resumed_one_is_whole():
    loader = loader_at(epoch=1)
    loader.load_state_dict({"epoch": 1, "delivered": 3})
    assert len(batches(loader)) == 2
    loader.sampler.set_epoch(2)
    assert batches(loader) == batches(loader_at(epoch=2))


def test_the_state_survives_another_interruption():
    first = loader_at(epoch=1)
    first.load_state_dict({"epoch": 1, "delivered": 3})
    assert first.state_dict() == {"epoch": 1, "delivered": 3}
    next(iter(first))
    assert first.state_dict() == {"epoch": 1, "delivered": 4}


def test_an_epoch_set_after_iter_counts():
    """Lightning asks for the iterator of a resumed run before it tells the sampler the epoch."""
    loader = loader_at(epoch=0)
    iterator = iter(loader)
    loader.sampler.set_epoch(4)
    assert [b.tolist() for b in iterator] == batches(loader_at(epoch=4))


def test_a_plain_sampler_starts_anew():
    torch.manual_seed(0)
    assert len(batches(ResumableLoader(TWENTY, batch_size=4, shuffle=True))) == 5
