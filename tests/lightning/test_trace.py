"""trace() inside of Lightning: on a LightningModule, and from a callback in the middle of a training."""

from typing import Any

import torch
from lightning.pytorch import Callback

import manualgrad as mg
from manualgrad.lightning import BackpropModule
from tests.lightning.runs import fitted, weights


class TraceBeforeStep(Callback):
    """Traces every batch before it is trained on, and holds the weights that come of it against the trace."""

    def __init__(self) -> None:
        self.traces: list[mg.Trace] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        inputs, classes = batch
        self.traces.append(mg.trace(pl_module, pl_module.cost, inputs, classes, trainer.optimizers[0]))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        trace = self.traces[-1]
        assert torch.equal(trace.loss, outputs["loss"])
        traced: Any
        for traced, layer in zip(trace.layers, pl_module.model, strict=True):
            assert torch.equal(traced.weight_after, layer.weight) and torch.equal(traced.bias_after, layer.bias)


def test_every_step_of_a_fit_is_the_traced_one_and_none_is_disturbed(tmp_path):
    callback = TraceBeforeStep()
    options: dict[str, Any] = {"max_epochs": 1, "limit_train_batches": 5}
    traced = fitted(tmp_path, callbacks=[callback], **options)
    plain = fitted(tmp_path, **options)
    assert len(callback.traces) == 5
    assert [layer.name for layer in callback.traces[0].layers] == ["model.0", "model.1"]
    assert callback.traces[0].loss_name == "cost"
    assert torch.equal(weights(traced), weights(plain))


def test_a_module_that_has_no_trainer():
    module = BackpropModule(sizes=(64, 16, 10))
    trace = mg.trace(module, module.cost, torch.rand(4, 64), torch.tensor([0, 1, 2, 3]))
    assert trace.outputs.shape == (4, 10) and trace.layers[0].delta.any()
