import copy
import csv
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, seed_everything
from lightning.pytorch.loggers import CSVLogger

import manualgrad as mg
from manualgrad.lightning import AutogradAudit, BackpropModule, DigitsDataModule, GradientMismatchError
from tests.lightning.runs import fitted, quiet_trainer, weights


class DroppingModule(BackpropModule):
    """Random numbers and batch statistics in the forward pass: what an audit could disturb."""

    def __init__(self):
        super().__init__(sizes=(64, 16, 10))
        self.before = torch.nn.Sequential(torch.nn.BatchNorm1d(64), torch.nn.Dropout(0.2))

    def forward(self, inputs):
        return super().forward(self.before(inputs))


class Record(Callback):
    def __init__(self):
        self.seen = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.seen.append([p.grad.clone() for p in pl_module.parameters()])

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        metrics = {name: value.item() for name, value in trainer.callback_metrics.items() if name != "autograd_gap"}
        self.seen.append((torch.get_rng_state().tolist(), metrics))


def run(directory, *callbacks, **options):
    seed_everything(0)
    record = Record()
    model = fitted(directory, DroppingModule(), callbacks=[*callbacks, record], **options)
    return model, record.seen


@pytest.mark.parametrize("options", [{}, {"precision": "bf16-mixed"}, {"accumulate_grad_batches": 3}], ids=str)
def test_training_is_the_same_bit_for_bit_with_and_without(tmp_path, options):
    plain, seen_plain = run(tmp_path, **options)
    audited, seen_audited = run(tmp_path, AutogradAudit(every_n_steps=2), **options)
    assert all(torch.equal(audited.state_dict()[name], value) for name, value in plain.state_dict().items())
    assert len(seen_plain) == len(seen_audited)
    for before, after in zip(seen_plain, seen_audited, strict=True):
        if isinstance(before, list):
            assert all(map(torch.equal, before, after))
        else:
            assert before == after


@pytest.mark.parametrize(
    ("options", "expected"), [({}, [0, 4, 8]), ({"accumulate_grad_batches": 2}, [0, 4])], ids=["plain", "accumulating"]
)
def test_logs_the_gap_at_every_nth_step(tmp_path, options, expected):
    logger = CSVLogger(tmp_path)
    fitted(
        tmp_path,
        callbacks=[AutogradAudit(every_n_steps=4)],
        max_epochs=1,
        logger=logger,
        log_every_n_steps=1,
        **options,
    )
    with open(f"{logger.log_dir}/metrics.csv") as file:
        gaps = {int(row["step"]): float(row["autograd_gap"]) for row in csv.DictReader(file) if row["autograd_gap"]}
    assert all(0 < gap < 1e-5 for gap in gaps.values())
    audited = [
        step for step in gaps if gaps[step] != gaps.get(step - 1)
    ]  # between audits Lightning repeats the last value
    assert audited == expected


def test_stops_at_a_wrong_derivative(tmp_path):
    mg.Activation("wrong_cube", value=lambda z: z**3, derivative=lambda z: 3.1 * z**2)
    model = BackpropModule(sizes=(64, 16, 10), activation="wrong_cube")
    start = weights(model).clone()
    with pytest.raises(GradientMismatchError) as error:
        fitted(tmp_path, model, callbacks=[AutogradAudit()])
    assert str(error.value) == (
        "AutogradAudit expected the gradients by hand to equal autograd's at step 0 (epoch 0), got a relative difference of "
        "3.3e-02 in model.0.weight, model.0.bias, input[0]. "
        "Check the derivative of an activation or loss, or pass a larger tolerance."
    )
    assert torch.equal(weights(model), start)


def test_the_tolerance_decides(tmp_path):
    mg.Activation("nearly_cube", value=lambda z: z**3, derivative=lambda z: 3.0003 * z**2)
    model = BackpropModule(sizes=(64, 16, 10), activation="nearly_cube", lr=0.01)
    fitted(tmp_path, model, callbacks=[AutogradAudit(tolerance=1e-3)])
    with pytest.raises(GradientMismatchError):
        fitted(tmp_path, model, callbacks=[AutogradAudit(tolerance=1e-5)])


def test_needs_automatic_optimization(tmp_path):
    model = BackpropModule(sizes=(64, 10))
    model.automatic_optimization = False
    with pytest.raises(ValueError) as error:
        quiet_trainer(tmp_path, callbacks=[AutogradAudit()]).fit(model, datamodule=DigitsDataModule())
    assert str(error.value) == (
        "AutogradAudit expected a module with automatic optimization, got BackpropModule with "
        "automatic_optimization=False. Remove the callback, or return the loss from training_step."
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"every_n_steps": 0},
            "AutogradAudit expected `every_n_steps` to be a whole number of at least 1, got 0. "
            "Pass for example every_n_steps=100.",
        ),
        (
            {"every_n_steps": 1.5},
            "AutogradAudit expected `every_n_steps` to be a whole number of at least 1, got 1.5. "
            "Pass for example every_n_steps=100.",
        ),
        (
            {"tolerance": "1e-5"},
            "AutogradAudit expected `tolerance` to be a number >= 0 or None, got '1e-5'. Pass for example tolerance=1e-5.",
        ),
        (
            {"tolerance": float("nan")},
            "AutogradAudit expected `tolerance` to be a number >= 0 or None, got nan. Pass for example tolerance=1e-5.",
        ),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError) as error:
        AutogradAudit(**options)
    assert str(error.value) == message


class Plain(LightningModule):
    """Nothing of it is by hand, unless it gets a layer that is."""

    def __init__(self, layer=None):
        super().__init__()
        self.layer = layer or torch.nn.Linear(64, 10)
        self.losses, self.loss_now = [], None

    def training_step(self, batch, batch_idx):
        loss = torch.nn.functional.cross_entropy(self.layer(batch[0]), batch[1])
        self.losses.append(loss)
        self.loss_now = loss
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_nothing_by_hand_is_not_reported_as_right(tmp_path):
    with pytest.raises(ValueError) as error:
        fitted(tmp_path, Plain(), callbacks=[AutogradAudit()])
    assert str(error.value) == (
        "AutogradAudit expected a module with something by hand, got Plain.training_step, which calls no Dense and none of "
        "manualgrad's losses. Call mg.convert(model) first, or remove the callback."
    )


def test_nan_in_the_data_is_not_blamed_on_a_derivative(tmp_path):
    class Spoilt(Plain):
        def training_step(self, batch, batch_idx):
            return super().training_step((batch[0] * float("nan"), batch[1]), batch_idx)

    with pytest.raises(GradientMismatchError) as error:
        fitted(tmp_path, Spoilt(mg.Dense(64, 10)), callbacks=[AutogradAudit()])
    assert str(error.value) == (
        "AutogradAudit stopped training at step 0 (epoch 0). Not finite in all three ways: layer.weight, layer.bias, input[0]. "
        "Nothing is shown there: look for NaN or infinity in inputs, targets and parameters."
    )


def test_a_module_that_keeps_losses_with_their_history_is_audited(tmp_path):
    module = Plain(mg.Dense(64, 10))
    plain = fitted(tmp_path, copy.deepcopy(module))
    trained = fitted(tmp_path, module, callbacks=[AutogradAudit(every_n_steps=3)])
    assert torch.equal(weights(plain), weights(trained))
    assert len(module.losses) == 20 and all(loss.requires_grad for loss in module.losses)


class WithIterator(Plain):
    noise: Any

    def training_step(self, batch, batch_idx):
        return super().training_step((batch[0] + next(self.noise), batch[1]), batch_idx)


def test_what_cannot_be_run_on_copies_costs_no_training(tmp_path):
    def trained(*callbacks):
        seed_everything(0)
        module = WithIterator(mg.Dense(64, 10))
        module.noise = (0.01 * i for i in range(100))
        return weights(fitted(tmp_path, module, callbacks=list(callbacks)))

    sentence = (
        "^AutogradAudit could not compare WithIterator.training_step with autograd, and training goes on without. "
        r"The step uses a `generator` that the module keeps and that cannot be copied \(TypeError: cannot pickle 'generator' "
        r"object\).$"
    )
    with pytest.warns(UserWarning, match=sentence):
        audited = trained(AutogradAudit())
    assert torch.equal(audited, trained())


class OwnState(Plain):
    """A state in float32 of its own making: there is no float64 truth."""

    def training_step(self, batch, batch_idx):
        x, y = batch
        state = torch.zeros(len(x), 64)
        return super().training_step((x + state.float(), y), batch_idx)


def test_a_missing_float64_truth_costs_no_training(tmp_path):
    class Cell(OwnState):
        def training_step(self, batch, batch_idx):
            h = self.layer(torch.zeros(len(batch[0]), 64)) + self.layer(batch[0])
            return torch.nn.functional.cross_entropy(h, batch[1])

    for module in (OwnState(mg.Dense(64, 10)), Cell(mg.Dense(64, 10))):
        fitted(tmp_path, module, callbacks=[AutogradAudit(every_n_steps=5)])
