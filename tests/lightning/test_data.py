import pytest
import torch
from lightning.pytorch import Callback
from sklearn.datasets import load_digits
from torch.utils.data import DistributedSampler

from manualgrad.lightning import BackpropModule, DigitsDataModule
from tests.lightning.runs import quiet_trainer


@pytest.fixture
def data():
    data = DigitsDataModule()
    data.setup()
    return data


def test_every_image_is_in_exactly_one_split(data):
    parts = [data.train, data.val, data.test]
    assert [len(part) for part in parts] == [1257, 180, 360]
    ours = torch.cat([torch.cat([part.tensors[0] * 16, part.tensors[1][:, None].float()], 1) for part in parts])
    pixels, digits = load_digits(return_X_y=True)
    theirs = torch.cat([torch.tensor(pixels), torch.tensor(digits)[:, None]], 1).float()
    assert sorted(ours.tolist()) == sorted(theirs.tolist())


def test_the_split_is_fixed(data):
    torch.manual_seed(123)
    other = DigitsDataModule(seed=7)
    other.setup()
    assert torch.equal(other.test.tensors[0], data.test.tensors[0])
    assert data.test.tensors[1][:8].tolist() == [7, 9, 4, 7, 0, 2, 6, 1]


def test_batches_are_pixels_from_0_to_1_and_digits(data):
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader(), data.predict_dataloader()):
        pixels, digits = next(iter(loader))
        assert (pixels.shape, pixels.dtype, pixels.min(), pixels.max()) == ((32, 64), torch.float32, 0, 1)
        assert (digits.shape, digits.dtype) == ((32,), torch.int64)
        assert 0 <= digits.min() and digits.max() <= 9


def test_the_order_depends_on_the_seed_and_the_epoch_alone(data):
    def order(seed, epoch):
        module = DigitsDataModule(seed=seed, batch_size=1257)
        module.setup()
        loader = module.train_dataloader()
        assert isinstance(loader.sampler, DistributedSampler)
        loader.sampler.set_epoch(epoch)
        return next(iter(loader))[1].tolist()

    torch.manual_seed(0)
    first = order(seed=0, epoch=1)
    torch.manual_seed(1)
    assert order(seed=0, epoch=1) == first
    assert order(seed=0, epoch=2) != first
    assert order(seed=5, epoch=1) != first


def test_overfitting_repeats_the_same_batches(tmp_path):
    seen = []

    class Watch(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            seen.append(batch[1].tolist())

    model = BackpropModule(sizes=(64, 10))
    trainer = quiet_trainer(tmp_path, callbacks=[Watch()], overfit_batches=2, max_epochs=2, limit_train_batches=1.0)
    with pytest.warns(UserWarning, match="You requested to overfit but enabled train dataloader shuffling"):
        trainer.fit(model, datamodule=DigitsDataModule())
    assert len(seen) == 4 and seen[:2] == seen[2:]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"batch_size": "32"},
            "DigitsDataModule expected `batch_size` to be a whole number of at least 1, got '32'. Pass for example batch_size=32.",
        ),
        (
            {"batch_size": 0},
            "DigitsDataModule expected `batch_size` to be a whole number of at least 1, got 0. Pass for example batch_size=32.",
        ),
        (
            {"num_workers": -1},
            "DigitsDataModule expected `num_workers` to be a whole number of at least 0, got -1. Pass num_workers=0.",
        ),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError) as error:
        DigitsDataModule(**options)
    assert str(error.value) == message
