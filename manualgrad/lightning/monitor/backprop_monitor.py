"""A callback that logs, while a net trains, how the error propagates back through its layers."""

from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn

from manualgrad.activation.idle_units import SATURATED_BELOW
from manualgrad.explain.printable import printable
from manualgrad.layers.activation_modules import ByHand
from manualgrad.layers.dense import Dense
from manualgrad.lightning.monitor.histograms import write_histograms
from manualgrad.lightning.monitor.layer_probe import LayerProbe
from manualgrad.lightning.monitor.layer_record import QUANTITIES, LayerRecord, read, symptoms
from manualgrad.lightning.monitor.plot import plot


if TYPE_CHECKING:
    from matplotlib.figure import Figure


ADVICE = {
    "vanishing": "Use relu, or normalisation or residual connections between the layers",
    "exploding": "Lower the learning rate, clip the gradients or scale down the initial weights",
}


class BackpropMonitor(Callback):
    """Logs for every `mg.Dense`, each `every_n_steps` optimizer steps and in the first one:

        delta_norm/<layer>      |delta|, delta = dC/dz of the whole batch
        grad_norm/<layer>       |dC/dw|, before clipping; of a factored gradient from its factors
        update_ratio/<layer>    |w_after - w_before| / |w_before|; 0 if a loss scaler skips the step
        saturated/<layer>       fraction of the entries of sigma'(z) below `saturated_below` in size; or, where sigma' is
        dead/<layer>              exactly 0 left of 0 as relu's is, fraction of the units where it is 0 for the whole batch

    It samples the step that ends a period, the 50th, 100th, ..., which is also the one that `Trainer` logs; Lightning repeats
    the values until the next sample. A TensorBoard logger also gets histograms of delta, gradient and weight, in wide layers
    of evenly spaced entries. `history` keeps the records, and `plot()` draws them.

    It warns, once per layer, if in two consecutive samples |delta| is below `vanishing_below` or above `exploding_above`
    times that of the last layer, or an update is larger than the weights; and at once if a norm is not finite.

    The layers have hooks in the sampled steps only, and training stays the same bit for bit. A sampled step copies the
    weights unless the optimizer is `mg.GradientDescent` or `SGD` without nesterov and weight decay, for which
    |w_after - w_before| = lr |gradient or momentum|. Accumulated batches count as one batch; for a layer used twice the
    squares of both errors add up. Several processes average their numbers, |delta| so that it is that of the joint batch;
    all log the same, and the first one writes and warns. Layers compiled with `torch.compile` show only gradients and updates.

    Sampling every 50 steps costs about 2 to 3 % of a step, nearly all of it in Lightning's own `log`: 2.3 and 3.1 % for
    64-128-10, 1.5 and 3.1 % for 512-1024-1024-512 (no logger and CSV, batch 32, one core, medians of alternating runs, which
    scatter by about 1.5 %: `python -m manualgrad.bench.monitor`). TensorBoard takes as long again to write the numbers: 5.1 and
    5.4 % for 64-128-10. Sample half as often if that is too much.

    Args:
        every_n_steps: optimizer steps between two samples.
        saturated_below, vanishing_below, exploding_above: the limits above.
        histograms_every_n_steps: optimizer steps between two samples with histograms. TensorBoard needs about 3 ms for one.

    Raises:
        ValueError: an option is out of range; or, when training starts, the module optimizes manually (as `BackpropModule`
            does with engine="train_step"), has no `mg.Dense`, or its weights will be sharded.
        MissingExtraError: by `plot()`, if matplotlib is not installed.
    """

    def __init__(
        self,
        every_n_steps: int = 50,
        saturated_below: float = SATURATED_BELOW,
        vanishing_below: float = 1e-3,
        exploding_above: float = 1e3,
        histograms_every_n_steps: int = 500,
    ) -> None:
        for name, value, least, usual in (
            ("every_n_steps", every_n_steps, 1, "50"),
            ("histograms_every_n_steps", histograms_every_n_steps, 1, "500"),
            ("saturated_below", saturated_below, 0, "0.01"),
            ("vanishing_below", vanishing_below, 0, "1e-3"),
            ("exploding_above", exploding_above, 0, "1e3"),
        ):
            if not value >= least:
                expected = "at least 1" if least else "a number >= 0"
                raise ValueError(
                    f"BackpropMonitor expected `{name}` to be {expected}, got {value}. Pass for example {name}={usual}."
                )
        self.every_n_steps, self.saturated_below = every_n_steps, saturated_below
        self.vanishing_below, self.exploding_above = vanishing_below, exploding_above
        self.histograms_every_n_steps = histograms_every_n_steps
        self.history: list[LayerRecord] = []
        self._probes: list[LayerProbe] = []
        self._warned: set[tuple[str, str]] = set()
        self._forget()

    def _forget(self) -> None:
        self._sampled_step: int | None = None
        self._suspected: set[tuple[str, str]] = set()
        self._update_hook: Any = None
        self._activation_hooks: list[Any] = []
        self._stepped = False

    def state_dict(self) -> dict[str, Any]:
        return {"warned": sorted(map(list, self._warned))}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._warned = {(layer, symptom) for layer, symptom in state_dict["warned"]}

    def plot(self) -> "Figure":
        """A matplotlib figure of `history`: |delta| from layer to layer, and each quantity over the training."""
        return plot(self.history)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        if not pl_module.automatic_optimization:
            raise ValueError(
                f"BackpropMonitor expected a module with automatic optimization, got {type(pl_module).__name__} with "
                "automatic_optimization=False, whose gradients it cannot see. Remove the callback, return the loss from "
                'training_step, or with BackpropModule pass engine="autograd".'
            )
        if isinstance(trainer.strategy, DeepSpeedStrategy | FSDPStrategy | ModelParallelStrategy):
            raise ValueError(
                "BackpropMonitor expected whole weights on every process, got "
                f'{type(trainer.strategy).__name__}, which shards them. Remove the callback, or pass Trainer(strategy="ddp").'
            )
        self.history.clear()
        self._warned.clear()
        self._forget()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Not in `setup`: the module's own `setup` and `configure_model` come after it, and may make the layers.
        layers = [(name, layer) for name, layer in pl_module.named_modules() if isinstance(layer, Dense)]
        if not layers:
            raise ValueError(
                f"BackpropMonitor expected a module with mg.Dense layers, got {type(pl_module).__name__} without any. "
                "Convert its linear layers first: mg.convert(model)."
            )
        self._probes = [LayerProbe(name, layer, self.saturated_below) for name, layer in layers]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        step = trainer.global_step  # stands still while gradients accumulate
        with_histograms = _ends_period(step, self.histograms_every_n_steps)
        is_sampled = with_histograms or _ends_period(
            step, self.every_n_steps
        )  # in all processes alike: they share numbers
        if is_sampled and self._sampled_step is None:
            self._sampled_step = step
            for probe in self._probes:
                probe.attach(with_samples=with_histograms and bool(_writers(trainer)))
            activations = [module for module in pl_module.modules() if isinstance(module, ByHand)]
            self._activation_hooks = [m.register_forward_pre_hook(self._before_activation) for m in activations]

    def _before_activation(self, module: nn.Module, arguments: tuple) -> None:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            for probe in self._probes:
                probe.before_activation(module, arguments)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        if self._sampled_step is None or self._update_hook is not None:
            return
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        loss_scale = (
            1.0 if scaler is None else scaler.get_scale()
        )  # the gradients are unscaled by now, the errors were not
        for probe in self._probes:
            probe.before_update(optimizer, loss_scale)
        self._update_hook = optimizer.register_step_post_hook(self._after_update)

    def _after_update(self, optimizer: torch.optim.Optimizer, arguments: Any, keywords: Any) -> None:
        self._stepped = True
        for probe in self._probes:
            probe.after_update(optimizer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._update_hook is None:  # not sampled, or still accumulating
            return
        step, stepped = self._sampled_step, self._stepped
        assert step is not None
        self._let_go()
        records = read(self._probes, trainer.strategy, trainer.world_size, step)
        self.history += records
        named = {f"{name}/{record.layer}": getattr(record, name) for record in records for name in QUANTITIES}
        metrics = {name: quantity for name, quantity in named.items() if quantity is not None}
        # They have no graph, which Lightning would otherwise cut off anew in every step until the next sample.
        pl_module.log_dict(metrics, on_step=True, on_epoch=False, enable_graph=True)
        for writer in _writers(trainer):
            for probe in self._probes:
                write_histograms(writer, probe.name, probe.samples or {}, step)
        if stepped:  # a step that a loss scaler has skipped says nothing
            self._warn(records, step)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._let_go()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._let_go()

    def _let_go(self) -> None:
        for probe in self._probes:
            probe.detach()
        for hook in self._activation_hooks:
            hook.remove()
        if self._update_hook is not None:
            self._update_hook.remove()
        self._sampled_step = self._update_hook = None
        self._stepped = False

    def _warn(self, records: list[LayerRecord], step: int) -> None:
        found = symptoms(records, self.vanishing_below, self.exploding_above)
        for (layer, symptom), (reason, is_certain) in found.items():
            certain = is_certain or (layer, symptom) in self._suspected
            if certain and (layer, symptom) not in self._warned:
                self._warned.add((layer, symptom))
                rank_zero_warn(
                    f"BackpropMonitor: layer {printable(layer)!r} is {symptom} at step {step}: {reason}. {ADVICE[symptom]}. "
                    "BackpropMonitor(vanishing_below=..., exploding_above=...) moves the limits."
                )
        self._suspected = set(found)


def _ends_period(step: int, period: int) -> bool:
    return step == 0 or (step + 1) % period == 0


def _writers(trainer: Trainer) -> list[Any]:
    """TensorBoard's, on the process that has one."""
    loggers = trainer.loggers if trainer.is_global_zero else []
    return [logger.experiment for logger in loggers if isinstance(logger, TensorBoardLogger)]
