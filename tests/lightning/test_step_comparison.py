import copy

import numpy
import pytest
import torch
from lightning.pytorch import LightningModule

import manualgrad as mg
from manualgrad.lightning import BackpropModule, DigitsDataModule
from manualgrad.lightning.step_comparison import compare_training_step
from tests.lightning.runs import fitted, quiet_trainer


class NoisyModule(LightningModule):
    """Dropout, numpy's random numbers, batch statistics, a nested batch, a dict for a result."""

    def __init__(self, result="dict"):
        super().__init__()
        self.body = torch.nn.Sequential(
            mg.Dense(4, 6, activation="gelu"), torch.nn.BatchNorm1d(6), torch.nn.Dropout(0.5), mg.Dense(6, 2)
        )
        self.result = result

    def training_step(self, batch, batch_idx):
        scale = float(numpy.random.rand()) + 1
        loss = mg.QuadraticLoss()(scale * self.body(batch["inputs"]["x"]), batch["y"])
        self.log("loss", loss)
        self.log_dict({"other": loss})
        return {"dict": {"loss": loss}, "tensor": loss, "nothing": None}[self.result]


@pytest.fixture
def batch():
    torch.manual_seed(0)
    return {"inputs": {"x": torch.randn(8, 4)}, "y": torch.randn(8, 2)}


@pytest.mark.parametrize("result", ["dict", "tensor"])
def test_any_module_and_any_batch(batch, result):
    module = NoisyModule(result)
    before = copy.deepcopy(module.state_dict())
    numpy.random.seed(0)
    comparison = compare_training_step(module, batch)
    assert comparison.max_relative_error < 1e-6
    assert [row.name for row in comparison.rows] == [*dict(module.named_parameters()), "input[0]", "input[1]"]
    numpy.testing.assert_equal(numpy.random.rand(), numpy.random.RandomState(0).rand())
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert all(p.grad is None for p in module.parameters())
    assert "log" not in vars(module)


def test_finds_a_wrong_derivative(batch):
    module = NoisyModule()
    wrong = mg.Activation("wrong_square", value=lambda z: z**2, derivative=lambda z: 2.001 * z)
    first = module.body[0]
    assert isinstance(first, mg.Dense)
    first.activation = wrong
    comparison = compare_training_step(module, batch)
    assert [row.name for row in comparison.rows if not row.ok] == ["body.0.weight", "body.0.bias", "input[0]"]


def test_in_the_precision_of_the_trainer(tmp_path):
    model = fitted(tmp_path, precision="64-true", max_epochs=1)
    comparison = compare_training_step(model, (torch.rand(5, 64), torch.arange(5)))
    assert comparison.ok and comparison.max_relative_error < 1e-12


def test_manual_optimization_has_no_single_loss(batch):
    module = NoisyModule()
    module.automatic_optimization = False
    with pytest.raises(ValueError) as error:
        compare_training_step(module, batch)
    assert str(error.value) == (
        "Comparing NoisyModule.training_step expected automatic optimization, got automatic_optimization=False. "
        "Use mg.compare(model, loss, inputs, targets) instead."
    )


def test_a_step_without_a_loss_is_an_error(batch):
    with pytest.raises(TypeError) as error:
        compare_training_step(NoisyModule("nothing"), batch)
    assert str(error.value) == (
        "Comparing NoisyModule.training_step expected it to return the loss or a dict with it under 'loss', got None. "
        "Return the loss."
    )


def test_a_fresh_module_needs_no_trainer():
    assert compare_training_step(BackpropModule(sizes=(3, 4, 2)), (torch.rand(5, 3), torch.ones(5).long())).ok


def test_says_which_gradients_training_keeps_factored(tmp_path):
    module = BackpropModule(sizes=(64, 512, 10))
    trainer = quiet_trainer(tmp_path, max_steps=1)
    trainer.fit(module, datamodule=DigitsDataModule())
    batch = torch.rand(4, 64), torch.arange(4)
    assert [row.name for row in compare_training_step(module, batch).rows if row.factored] == ["model.0.weight"]
    fresh = compare_training_step(BackpropModule(sizes=(64, 512, 10)), batch)
    assert fresh.ok and not any(row.factored for row in fresh.rows)
