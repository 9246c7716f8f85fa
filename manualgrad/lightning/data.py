"""Scikit-learn's handwritten digits for Lightning: real data without a download."""

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Sampler, TensorDataset

from manualgrad.extras import require
from manualgrad.lightning.loader import ResumableLoader


SIZES = [1257, 180, 360]  # of the 1797 images: train, validate, test


class DigitsDataModule(LightningDataModule):
    """1797 handwritten digits of 8 x 8 pixels (`sklearn.datasets.load_digits`), always split in the same way: 1257 for
    training, 180 for validation, 360 for testing and predicting.

    Batches: pixels (n, 64) from 0 to 1, float32; digits (n,), int64. The order of the training images depends on
    `seed` and the epoch only, so that a run resumed in the middle of an epoch goes on with the batches that were left.

    Args:
        batch_size: images in a batch, on each device.
        num_workers: processes that load batches; the data is in memory, so 0 is fastest.
        seed: of the order of the training images.

    Raises:
        MissingExtraError: scikit-learn is not installed.
        ValueError: `batch_size` is no positive integer or `num_workers` is negative.
    """

    def __init__(self, batch_size: int = 32, num_workers: int = 0, seed: int = 0) -> None:
        super().__init__()
        require("sklearn", extra="demo", purpose="DigitsDataModule")
        for name, value, least, advice in (
            ("batch_size", batch_size, 1, "Pass for example batch_size=32."),
            ("num_workers", num_workers, 0, "Pass num_workers=0."),
        ):
            if not isinstance(value, int) or value < least:
                raise ValueError(
                    f"DigitsDataModule expected `{name}` to be a whole number of at least {least}, got {value!r}. {advice}"
                )
        self.save_hyperparameters()
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, seed
        self._train_loader: ResumableLoader | None = None
        self._resumed: dict[str, int] = {}

    def setup(self, stage: str | None = None) -> None:
        import numpy
        from sklearn.datasets import load_digits

        pixels, digits = load_digits(return_X_y=True)
        order = numpy.random.RandomState(0).permutation(len(digits))  # numpy promises that this order never changes
        images = torch.tensor(pixels[order] / 16, dtype=torch.float32)  # (1797, 64)
        classes = torch.tensor(digits[order], dtype=torch.int64)  # (1797,)
        self.train, self.val, self.test = map(TensorDataset, images.split(SIZES), classes.split(SIZES))

    def train_dataloader(self) -> DataLoader:
        replicas, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        sampler: Sampler[int] = DistributedSampler(self.train, replicas, rank, shuffle=True, seed=self.seed)
        loader = ResumableLoader(self.train, sampler=sampler, batch_size=self.batch_size, num_workers=self.num_workers)
        if self._resumed:
            loader.load_state_dict(self._resumed)
            self._resumed = {}
        self._train_loader = loader
        return loader

    def val_dataloader(self) -> DataLoader:
        return self._in_order(self.val)

    def test_dataloader(self) -> DataLoader:
        return self._in_order(self.test)

    predict_dataloader = test_dataloader

    # Lightning restores a loader's own state only if the loader has not been requested before, which a scheduler does to learn
    # the number of steps. The data module's state is always restored.

    def state_dict(self) -> dict[str, int]:
        return self._train_loader.state_dict() if self._train_loader is not None else {}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self._resumed = state_dict

    def _in_order(self, images: Dataset) -> DataLoader:
        return DataLoader(images, batch_size=self.batch_size, num_workers=self.num_workers)
