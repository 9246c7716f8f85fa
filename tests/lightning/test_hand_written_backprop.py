"""`HandWrittenBackprop` in other people's modules: the same training, and the module as it was when it has ended."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.demos.boring_classes import BoringModel, DemoModel, ManualOptimBoringModel, RandomDataset
from lightning.pytorch.demos.lstm import LightningLSTM, SimpleLSTM
from lightning.pytorch.demos.transformer import LightningTransformer, Transformer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import manualgrad as mg
from manualgrad.factored.requests import is_wanted
from manualgrad.lightning import BackpropModule, DigitsDataModule, HandWrittenBackprop
from tests.lightning.runs import quiet_trainer, weights


WORDS = 50


def small(module: Any, network: nn.Module) -> LightningModule:
    """A demo of Lightning's with a network of its own kind that trains in a second."""
    module.model = network
    return module


MODULES: dict[str, Callable[[], LightningModule]] = {
    "BoringModel": BoringModel,
    "DemoModel": DemoModel,
    "LightningTransformer": lambda: small(LightningTransformer(WORDS), Transformer(WORDS, 16, 2, 16)),
    "LightningLSTM": lambda: small(LightningLSTM(WORDS), SimpleLSTM(WORDS, 16, 16, 2)),
}


def batches(module: LightningModule, batch_size: int = 4) -> DataLoader:
    if isinstance(module, BoringModel | DemoModel):
        return DataLoader(RandomDataset(32, 24), batch_size=batch_size)
    words = torch.randint(WORDS, (24, 8), generator=torch.Generator().manual_seed(1))
    return DataLoader(TensorDataset(words[:, :-1], words[:, 1:]), batch_size=4)


def fit(
    folder: Path,
    module: LightningModule,
    *callbacks: Callback,
    ckpt_path: Any = None,
    batch_size: int = 4,
    **options: Any,
) -> Any:
    """Six optimizer steps in each of two epochs, with the module's own `prepare_data`, a download, left out."""
    module.prepare_data = lambda: None  # type: ignore[method-assign]
    seed_everything(1)
    trainer = quiet_trainer(folder, callbacks=[*callbacks], **{"limit_val_batches": 0, **options})
    trainer.fit(module, batches(module, batch_size), ckpt_path=ckpt_path, weights_only=False)
    return trainer


def made(name: str) -> LightningModule:
    seed_everything(0)
    return MODULES[name]()


def by_hand(module: nn.Module) -> list[str]:
    return [type(part).__name__ for part in module.modules() if type(part).__module__.startswith("manualgrad")]


class Watch(Callback):
    """The classes by hand that are there when a batch is trained on."""

    def __init__(self) -> None:
        self.seen: set[str] = set()

    def on_train_batch_end(self, trainer: Any, pl_module: LightningModule, *_: Any) -> None:
        self.seen.update(by_hand(pl_module))


@pytest.mark.parametrize("name", MODULES)
def test_the_same_weights_as_without_it_and_the_module_as_it_was(name: str, tmp_path: Path) -> None:
    plain, module, watch = made(name), made(name), Watch()
    fit(tmp_path, plain)
    trainer = fit(tmp_path, module, HandWrittenBackprop(audit_every_n_steps=2), watch)
    assert "Dense" in watch.seen and by_hand(module) == []
    assert trainer.callback_metrics["autograd_gap"] < 1e-6
    assert [type(part) for part in module.modules()] == [type(part) for part in plain.modules()]
    torch.testing.assert_close(weights(module), weights(plain), rtol=0, atol=1e-6)
    assert not torch.equal(weights(module), weights(made(name)))


def test_manual_optimization_and_several_optimizers(tmp_path: Path) -> None:
    plain, module, watch = ManualOptimBoringModel(), ManualOptimBoringModel(), Watch()
    module.load_state_dict(plain.state_dict())
    fit(tmp_path, plain)
    fit(tmp_path, module, HandWrittenBackprop(), watch)
    assert watch.seen == {"Dense"} and by_hand(module) == []
    torch.testing.assert_close(weights(module), weights(plain), rtol=0, atol=1e-6)


class WithNetwork(LightningModule):
    """A module that keeps its network among the hyperparameters, as people do in spite of Lightning's hint."""

    def __init__(self, network: nn.Module, rate: float = 0.1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.network = network

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        return self.network(batch).square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.hparams["rate"], momentum=0.9)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(RandomDataset(32, 24), batch_size=4)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 8), nn.Tanh(), nn.Linear(8, 2))


def fit_network(folder: Path, *callbacks: Callback, **options: Any) -> WithNetwork:
    with pytest.warns(UserWarning, match="Attribute 'network' is an instance of `nn.Module`"):
        module = WithNetwork(network())
    ckpt_path = options.pop("ckpt_path", None)
    options = {"limit_val_batches": 0, "enable_checkpointing": True, **options}
    quiet_trainer(folder, callbacks=[*callbacks], **options).fit(module, ckpt_path=ckpt_path, weights_only=False)
    return module


def saved(folder: Path, name: str, weights_only: bool = False) -> ModelCheckpoint:
    every: dict[str, Any] = {"every_n_train_steps": 4, "save_top_k": -1, "save_weights_only": weights_only}
    return ModelCheckpoint(folder / name, filename="{step}", **every)


def outline(x: Any) -> Any:
    """Keys and classes of everything in a checkpoint, with the shapes of tensors."""
    if isinstance(x, dict):
        return type(x), {key: outline(value) for key, value in x.items() if "Checkpoint" not in str(key)}
    if isinstance(x, list | tuple):
        return type(x), [outline(item) for item in x]
    if isinstance(x, nn.Module):
        return [(name, type(part)) for name, part in x.named_modules()], [vars(p) for p in x.parameters()]
    return (type(x), x.shape, x.dtype) if isinstance(x, torch.Tensor) else type(x)


@pytest.mark.parametrize("weights_only", [False, True])
@pytest.mark.filterwarnings("ignore:Attribute 'network' is an instance of `nn.Module`")
def test_a_checkpoint_in_mid_training_has_the_keys_and_classes_of_a_plain_one(
    tmp_path: Path, weights_only: bool
) -> None:
    fit_network(tmp_path, saved(tmp_path, "plain", weights_only))
    fit_network(tmp_path, saved(tmp_path, "by hand", weights_only), HandWrittenBackprop(factored=True))
    plain, ours = (torch.load(tmp_path / name / "step=4.ckpt", weights_only=False) for name in ("plain", "by hand"))
    assert outline(ours) == outline(plain)
    assert ours["state_dict"]._metadata == plain["state_dict"]._metadata
    torch.testing.assert_close(ours["state_dict"], plain["state_dict"], rtol=0, atol=1e-6)
    sizes = [(tmp_path / name / "step=4.ckpt").stat().st_size for name in ("plain", "by hand")]
    assert sizes[1] < 1.1 * sizes[0]  # the hyperparameters' network is in the memory of the state dict in both
    loaded = WithNetwork.load_from_checkpoint(tmp_path / "by hand" / "step=4.ckpt", weights_only=False)
    assert by_hand(loaded) == []


@pytest.mark.parametrize("with_it", [True, False])
def test_a_run_is_resumed_with_or_without_it(tmp_path: Path, with_it: bool) -> None:
    def run(*callbacks: Callback, **options: Any) -> torch.Tensor:
        module = made("BoringModel")
        fit(tmp_path, module, *callbacks, max_epochs=3, **options)
        return weights(module)

    class Saves(Callback):
        def on_train_epoch_end(self, trainer: Any, pl_module: LightningModule) -> None:
            trainer.save_checkpoint(tmp_path / f"epoch={trainer.current_epoch}.ckpt")

    whole = run(HandWrittenBackprop(), Saves())
    callbacks = [HandWrittenBackprop()] if with_it else []
    resumed = run(*callbacks, ckpt_path=tmp_path / "epoch=0.ckpt")
    torch.testing.assert_close(resumed, whole, rtol=0, atol=1e-6)


def test_fast_dev_run_takes_one_step_and_writes_nothing(tmp_path: Path) -> None:
    module = made("BoringModel")
    callback = HandWrittenBackprop(audit_every_n_steps=1, page_every_n_epochs=1)
    trainer = fit(tmp_path, module, callback, fast_dev_run=True)
    assert trainer.global_step == 1 and by_hand(module) == [] and list(tmp_path.iterdir()) == []


@pytest.fixture
def interruptible() -> Iterator[None]:
    before = signal.getsignal(signal.SIGINT)  # which Lightning takes away
    yield
    signal.signal(signal.SIGINT, before)


class Ends(Callback):
    """Ends the training at one of its hooks."""

    def __init__(self, hook: str, error: BaseException) -> None:
        def end(trainer: Any, pl_module: LightningModule, *_: Any, **__: Any) -> None:
            if hook == "setup" or not trainer.sanity_checking:
                self.seen = by_hand(pl_module)
                raise error

        setattr(self, hook, end)


@pytest.mark.parametrize(
    "hook", ["setup", "on_fit_start", "on_train_batch_start", "on_before_optimizer_step", "on_validation_batch_end"]
)
@pytest.mark.parametrize("error", [OSError("disk"), KeyboardInterrupt()], ids=repr)
def test_an_exception_or_ctrl_c_anywhere_leaves_the_module_as_it_was(
    tmp_path: Path, hook: str, error: BaseException, interruptible: None
) -> None:
    module, callback, ends = made("BoringModel"), HandWrittenBackprop(factored=True), Ends(hook, error)
    with pytest.raises(SystemExit if isinstance(error, KeyboardInterrupt) else OSError):
        fit(tmp_path, module, callback, ends, limit_val_batches=1)
    assert ends.seen == ["Dense"] and by_hand(module) == []
    assert "on_save_checkpoint" not in vars(module)
    assert not any(vars(p) for p in module.parameters())
    fit(tmp_path, module.train(), callback)  # again, with the same callback
    assert by_hand(module) == []


def test_what_was_by_hand_before_stays(tmp_path: Path) -> None:
    class Mixed(BoringModel):
        layer: Any

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Sequential(
                mg.convert(nn.Linear(32, 8)), mg.convert(nn.ReLU()), mg.Dense(8, 8, activation="tanh"), nn.Linear(8, 2)
            )
            mg.keep_factored(self.layer[0])

    module, watch = Mixed(), Watch()
    layers = [type(layer) for layer in module.layer]
    fit(tmp_path, module, HandWrittenBackprop(factored=True), watch)
    assert [type(layer) for layer in module.layer] == layers
    assert mg.conversion_report(module).converted == ["layer.0"]
    assert [is_wanted(layer.weight) for layer in module.layer if isinstance(layer, nn.Linear)] == [True, False, False]


@pytest.mark.parametrize("hook", ["setup", "configure_model"])
def test_layers_that_the_module_makes_late_are_converted_too(tmp_path: Path, hook: str) -> None:
    class Late(BoringModel):
        def __init__(self) -> None:
            super().__init__()
            self.layer = None  # type: ignore[assignment]

    setattr(Late, hook, lambda self, stage=None: setattr(self, "layer", self.layer or nn.Linear(32, 2)))
    module, watch = Late(), Watch()
    fit(tmp_path, module, HandWrittenBackprop(), watch)
    assert watch.seen == {"Dense"} and type(module.layer) is nn.Linear


@pytest.mark.usefixtures("small_weights_too")
def test_factored_gradients_for_the_users_own_sgd(tmp_path: Path) -> None:
    class Kinds(Callback):
        seen: set[type] = set()

        def on_before_optimizer_step(self, trainer: Any, pl_module: LightningModule, optimizer: Any) -> None:
            self.seen.add(type(pl_module.layer.weight.grad))  # type: ignore[union-attr]

    kinds, plain, module = Kinds(), made("BoringModel"), made("BoringModel")
    fit(tmp_path, plain, batch_size=1)  # one row of 2 + 32 numbers is less than a gradient of 64
    fit(tmp_path, module, HandWrittenBackprop(factored=True), kinds, batch_size=1)
    assert kinds.seen == {mg.FactoredGradient}
    torch.testing.assert_close(weights(module), weights(plain), rtol=0, atol=1e-6)
    layer: Any = module.layer
    assert not is_wanted(layer.weight)


def test_pages_of_steps_stand_in_the_log_folder_and_change_nothing(tmp_path: Path) -> None:
    plain, module = made("LightningTransformer"), made("LightningTransformer")
    fit(tmp_path, plain, max_epochs=3)
    fit(tmp_path, module, HandWrittenBackprop(page_every_n_epochs=2), max_epochs=3)
    pages = sorted((tmp_path / "step_pages").iterdir())
    assert [page.name for page in pages] == ["epoch=0-step=0.html", "epoch=2-step=12.html"]
    text = pages[0].read_text()
    assert "Step 0 of the training, explained" in text and "model.decoder" in text and "SGD(lr=0.1)" in text
    torch.testing.assert_close(weights(module), weights(plain), rtol=0, atol=1e-6)


def test_a_step_that_cannot_be_shown_costs_a_warning_and_no_training(tmp_path: Path) -> None:
    class Keeps(BoringModel):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            next(self.noise)  # type: ignore[call-overload]
            return super().training_step(batch, batch_idx)

    module = Keeps()
    module.noise = (i for i in range(100))  # type: ignore[assignment]
    sentence = (
        "^HandWrittenBackprop cannot show a training step of this module, and goes on without. The step uses a `generator` "
        r"that the module keeps and that cannot be copied \(TypeError: cannot pickle 'generator' object\).$"
    )
    with pytest.warns(UserWarning, match=sentence):
        trainer = fit(tmp_path, module, HandWrittenBackprop(page_every_n_epochs=1))
    assert trainer.global_step == 12 and not (tmp_path / "step_pages").exists()


def test_a_layer_whose_class_was_changed_in_training_is_left_with_a_warning(tmp_path: Path) -> None:
    class Parametrizes(Callback):
        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            nn.utils.parametrize.register_parametrization(pl_module.layer, "weight", nn.Identity())

    with pytest.warns(UserWarning, match="^HandWrittenBackprop leaves 'layer' converted. revert expected "):
        fit(tmp_path, made("BoringModel"), HandWrittenBackprop(), Parametrizes())


def test_a_module_with_nothing_to_convert_is_refused(tmp_path: Path) -> None:
    class Own(nn.Linear):
        pass

    for layer, why in (
        (nn.Conv1d(1, 1, 3), ""),
        (Own(3, 3), " (layer: of type Own, not nn.Linear itself: what it overrides would be lost)"),
    ):
        module = BoringModel()
        module.layer = layer  # type: ignore[assignment]
        sentence = (
            "HandWrittenBackprop expected a module with linear layers or activations of torch.nn, got BoringModel, in which "
            f"nothing can be by hand{why}. Remove the callback."
        )
        with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
            fit(tmp_path, module, HandWrittenBackprop())


@pytest.mark.parametrize("option", ["audit_every_n_steps", "page_every_n_epochs"])
def test_a_step_without_a_single_loss_is_refused(tmp_path: Path, option: str) -> None:
    options: dict[str, Any] = {option: 1}
    module = ManualOptimBoringModel()
    with pytest.raises(ValueError) as error:
        fit(tmp_path, module, HandWrittenBackprop(**options))
    assert str(error.value) == (
        "HandWrittenBackprop expected a module with automatic optimization, got ManualOptimBoringModel with "
        "automatic_optimization=False, whose step has no single loss. Leave audit_every_n_steps and page_every_n_epochs out, "
        "or return the loss from training_step."
    )
    assert by_hand(module) == []


@pytest.mark.parametrize("period", [0, -1, 1.5, True, "3"])
@pytest.mark.parametrize("option", ["audit_every_n_steps", "page_every_n_epochs"])
def test_wrong_periods_are_named(option: str, period: Any) -> None:
    options: dict[str, Any] = {option: period}
    with pytest.raises(ValueError) as error:
        HandWrittenBackprop(**options)
    assert str(error.value) == (
        f"HandWrittenBackprop expected `{option}` to be a whole number of at least 1 or None, got {period!r}. "
        f"Pass for example {option}=10."
    )


def test_other_stages_convert_nothing(tmp_path: Path) -> None:
    class Seen(Callback):
        def on_validation_batch_end(self, trainer: Any, pl_module: LightningModule, *_: Any) -> None:
            assert by_hand(pl_module) == []

    module = made("BoringModel")
    quiet_trainer(tmp_path, callbacks=[HandWrittenBackprop(), Seen()]).validate(module, verbose=False)


def test_a_module_of_this_package_trains_as_before(tmp_path: Path) -> None:
    trained = []
    for callbacks in ([], [HandWrittenBackprop(audit_every_n_steps=5)]):
        seed_everything(0)
        module = BackpropModule(sizes=(64, 16, 10))
        quiet_trainer(tmp_path, callbacks=callbacks).fit(module, datamodule=DigitsDataModule())
        trained.append(weights(module))
    assert torch.equal(*trained)
