from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, seed_everything

import manualgrad as mg
from manualgrad.lightning import BackpropModule, DigitsDataModule
from tests.lightning.runs import fitted, fitted_with_checkpoints, quiet_trainer, weights


@pytest.fixture(autouse=True)
def seed():
    seed_everything(0)


@pytest.mark.parametrize(
    ("loss", "lr", "epochs"),
    [("cross_entropy", 0.1, 5), ("binary_cross_entropy", 0.5, 8), ("quadratic", 0.1, 5)],
)
def test_learns_the_digits(tmp_path, loss, lr, epochs):
    model = BackpropModule(loss=loss, lr=lr)
    trainer = quiet_trainer(tmp_path, max_epochs=epochs, limit_train_batches=1.0)
    trainer.fit(model, datamodule=DigitsDataModule())
    results = trainer.test(model, datamodule=DigitsDataModule(), verbose=False)[0]
    assert results["test_accuracy"] > 0.95
    assert set(trainer.callback_metrics) == {"test_loss", "test_accuracy"}


def test_a_step_is_gradient_descent_on_the_digits(tmp_path):
    """One step of the trainer equals built-in autograd and torch.optim.SGD on the same batch."""
    options: dict[str, Any] = {
        "lr": 0.2,
        "momentum": 0.5,
        "weight_decay": 1e-3,
        "nesterov": True,
        "lr_schedule": "constant",
    }
    model = BackpropModule(sizes=(64, 16, 10), activation="tanh", **options)
    twin = torch.nn.Sequential(torch.nn.Linear(64, 16), torch.nn.Tanh(), torch.nn.Linear(16, 10))
    twin.load_state_dict(dict(zip(twin.state_dict(), (p.clone() for p in model.model.parameters()), strict=True)))
    options.pop("lr_schedule")
    descent = torch.optim.SGD(twin.parameters(), **options)
    data = DigitsDataModule()
    data.setup()
    for _, (inputs, classes) in zip(range(3), data.train_dataloader(), strict=False):
        descent.zero_grad()
        torch.nn.functional.cross_entropy(twin(inputs), classes).backward()
        descent.step()
    fitted(tmp_path, model, max_steps=3)
    torch.testing.assert_close(weights(model), weights(twin), rtol=1e-5, atol=1e-7)


def test_quadratic_loss_compares_with_one_hot_rows():
    model = BackpropModule(sizes=(2, 3), loss="quadratic")
    outputs = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.5, 0.0]])
    assert model.cost(outputs, torch.tensor([0, 1])).item() == pytest.approx(0.5 * 0.25 / 2)


@pytest.mark.parametrize(("loss", "threshold"), [("binary_cross_entropy", 0.0), ("quadratic", 0.5)])
def test_one_output_stands_for_two_classes(tmp_path, loss, threshold):
    model = BackpropModule(sizes=(64, 1), loss=loss)
    model.model[0].weight.data.zero_()
    for bias, predicted in ((threshold + 0.1, 1), (threshold - 0.1, 0)):
        model.model[0].bias.data.fill_(bias)
        assert model.predict_step(torch.zeros(2, 64), 0).tolist() == [predicted] * 2
    assert model.cost(torch.zeros(2, 1), torch.tensor([0, 1])).isfinite()


def test_predicts_a_class_for_each_test_image(tmp_path):
    model = fitted(tmp_path, max_epochs=3, limit_train_batches=1.0)
    data = DigitsDataModule()
    predictions: Any = quiet_trainer(tmp_path).predict(model, datamodule=data)
    predicted = torch.cat(predictions)
    assert predicted.dtype == torch.int64
    assert (predicted == data.test.tensors[1]).float().mean() > 0.9


@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-mixed"])
def test_trains_in_every_precision_to_the_same_accuracy(tmp_path, precision):
    model = fitted(tmp_path, precision=precision, max_epochs=6, limit_train_batches=1.0)
    trainer = quiet_trainer(tmp_path, precision=precision)
    assert trainer.test(model, datamodule=DigitsDataModule(), verbose=False)[0]["test_accuracy"] > 0.94
    assert weights(model).dtype == (torch.float64 if precision == "64-true" else torch.float32)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [("constant", [0.1] * 3), ("linear", [0.1, 0.075, 0.05]), ("cosine", [0.1, 0.08536, 0.05])],
)
def test_lr_schedule_goes_down_to_zero_over_the_whole_training(tmp_path, schedule, expected):
    seen = []

    class Watch(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            seen.append(trainer.optimizers[0].param_groups[0]["lr"])

    model = BackpropModule(sizes=(64, 10), lr_schedule=schedule)
    fitted(tmp_path, model, callbacks=[Watch()], max_epochs=2, limit_train_batches=2)
    assert seen[:3] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_the_trainer_clips_gradients_as_it_does_those_of_sgd(tmp_path, algorithm):
    class WithSGD(BackpropModule):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)

    clipped = {"gradient_clip_val": 0.01, "gradient_clip_algorithm": algorithm, "accumulate_grad_batches": 3}
    seed_everything(0)
    ours = fitted(tmp_path, BackpropModule(sizes=(64, 16, 10), lr_schedule="constant"), **clipped)
    seed_everything(0)
    theirs = fitted(tmp_path, WithSGD(sizes=(64, 16, 10)), **clipped)
    seed_everything(0)
    unclipped = fitted(tmp_path, BackpropModule(sizes=(64, 16, 10), lr_schedule="constant"), accumulate_grad_batches=3)
    torch.testing.assert_close(weights(ours), weights(theirs), rtol=1e-5, atol=1e-7)
    assert (weights(ours) - weights(unclipped)).abs().max() > 1e-3


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"accumulate_grad_batches": 2, "limit_train_batches": 20},
        {"precision": "64-true"},
        {"precision": "bf16-mixed"},
        {"val_check_interval": 0.5},
        {"num_workers": 1},
    ],
    ids=str,
)
def test_a_run_resumed_in_mid_epoch_ends_in_the_same_weights(tmp_path, options):
    directory = tmp_path / "checkpoints"
    uninterrupted = fitted_with_checkpoints(directory, **options)
    resumed = fitted_with_checkpoints(directory, directory / "step=14.ckpt", **options)
    assert torch.equal(resumed, uninterrupted)


def test_a_checkpoint_loads_with_its_options(tmp_path):
    trainer = quiet_trainer(tmp_path)
    model = BackpropModule(sizes=[64, 5, 10], activation="sigmoid", loss="quadratic")
    trainer.fit(model, datamodule=DigitsDataModule())
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    loaded = BackpropModule.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    assert torch.equal(weights(loaded), weights(model))
    assert loaded.hparams == model.hparams
    assert isinstance(loaded.loss, mg.QuadraticLoss)
    assert loaded.model[0].activation.name == "sigmoid"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"loss": "huber"},
            "Unknown loss 'huber'. Known: quadratic, cross_entropy, binary_cross_entropy. Pass for example loss='quadratic'.",
        ),
        (
            {"lr_schedule": "step"},
            "Unknown lr_schedule 'step'. Known: constant, cosine, linear. Pass for example lr_schedule='cosine'.",
        ),
        (
            {"sizes": (64, 1)},
            "BackpropModule expected at least two classes for loss='cross_entropy', got sizes=[64, 1]. "
            "Pass loss='binary_cross_entropy', or a last size of 2 or more.",
        ),
        ({"max_norm": 0}, "Invalid max_norm: 0. Expected a number > 0 or None, for example max_norm=1.0."),
        ({"max_norm": "1"}, "Invalid max_norm: '1'. Expected a number > 0 or None, for example max_norm=1.0."),
        ({"lr": -1.0}, "Invalid learning rate: -1.0. Expected a finite number >= 0, for example lr=0.1."),
    ],
)
def test_wrong_options_fail_before_training(options, message):
    with pytest.raises(ValueError) as error:
        BackpropModule(**options)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("classes", "error", "message"),
    [
        (
            torch.tensor([0, 3]),
            ValueError,
            "BackpropModule expected class indices from 0 to 2 for outputs of shape (2, 3), got 3. "
            "Correct the targets or give the last layer more features.",
        ),
        (
            torch.tensor([[0], [1]]),
            ValueError,
            "BackpropModule expected class indices of shape (2,) for outputs of shape (2, 3), got (2, 1). "
            "Give one class for each input.",
        ),
        (
            torch.tensor([0, 1], dtype=torch.int32),
            TypeError,
            "BackpropModule expected class indices of dtype torch.int64, got torch.int32. Convert them with targets.long().",
        ),
    ],
)
def test_wrong_classes_are_named(classes, error, message):
    with pytest.raises(error) as raised:
        BackpropModule(sizes=(2, 3), loss="quadratic").cost(torch.zeros(2, 3), classes)
    assert str(raised.value) == message


def test_a_schedule_needs_a_training_of_known_length(tmp_path):
    with pytest.raises(ValueError) as error:
        fitted(tmp_path, max_epochs=-1)
    assert str(error.value) == (
        "lr_schedule='cosine' expected a training of known length, got max_epochs=-1 and no max_steps. "
        "Pass Trainer(max_epochs=...), or lr_schedule='constant'."
    )
