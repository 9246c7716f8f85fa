"""Models as they come: other people's layouts, sharing, wrappers, checkpoints and optimizers around a conversion."""

import copy
import io
import pickle
from typing import Any

import lightning
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import manualgrad as mg
from tests.conversion.models_to_convert import Branches


# PyTorch's own, on tracing any autograd.Function
TRACING = "ignore:.*autograd.function.Function'> should not be instantiated:DeprecationWarning"


class ReadsItsWeight(nn.Module):
    """Calls the layer and reads its weight; `tied` also through a transpose, as a decoder does."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.shared = nn.Linear(256, 200), nn.Linear(256, 200)
        self.shared.weight = self.encoder.weight

    @property
    def alias(self) -> nn.Module:
        return self.encoder

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.alias(x) + F.linear(x, self.encoder.weight) + self.shared(x))
        return F.linear(h, self.encoder.weight.t())


def test_a_weight_that_is_tied_read_and_transposed_trains_as_before() -> None:
    """The optimizer made before the conversion: it owns the same Parameters afterwards."""
    original = ReadsItsWeight().double()
    model = copy.deepcopy(original)
    optimizers = torch.optim.SGD(original.parameters(), lr=0.1), mg.GradientDescent(model.parameters(), lr=0.1)
    mg.convert(model)
    x = torch.randn(4, 256).double()
    for _ in range(5):
        for module, optimizer in zip((original, model), optimizers, strict=True):
            optimizer.zero_grad()
            module(x).square().mean().backward()
            optimizer.step()
    torch.testing.assert_close(model.state_dict(), original.state_dict(), rtol=1e-12, atol=1e-13)
    assert model.shared.weight is model.encoder.weight


def test_an_optimizer_made_before_gets_factored_gradients() -> None:
    model = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 256))
    optimizer = mg.GradientDescent(model.parameters(), lr=0.1)
    mg.convert(model)(torch.randn(2, 256)).sum().backward()
    assert all(isinstance(model[i].weight.grad, mg.FactoredGradient) for i in (0, 2))
    optimizer.step()


class SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, hidden: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(self.query(hidden), self.key(hidden), self.value(hidden))


class Encoder(nn.Module):
    """Laid out as the models of Hugging Face are: nested, activation and linear layer apart, a tied head."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = nn.ModuleDict({"word_embeddings": nn.Embedding(11, 8)})
        self.layer: Any = nn.ModuleList(
            nn.ModuleDict(
                {
                    "attention": nn.ModuleDict({"self": SelfAttention(), "output": nn.Linear(8, 8)}),
                    "intermediate": nn.ModuleDict({"dense": nn.Linear(8, 16), "act": nn.GELU()}),
                    "output": nn.Sequential(nn.Linear(16, 8), nn.Dropout(0.0)),
                }
            )
            for _ in range(2)
        )
        self.lm_head = nn.Linear(8, 11, bias=False)
        self.lm_head.weight = self.embeddings["word_embeddings"].weight  # type: ignore[assignment]

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.embeddings["word_embeddings"](tokens)
        for layer in self.layer:
            h = h + layer["attention"]["output"](layer["attention"]["self"](h))
            h = h + layer["output"](layer["intermediate"]["act"](layer["intermediate"]["dense"](h)))
        return self.lm_head(h)


def test_a_model_laid_out_as_on_the_hub() -> None:
    model, tokens = Encoder(), torch.randint(11, (2, 5))
    expected = torch.autograd.grad(model(tokens).square().sum(), list(model.parameters()))
    report = mg.conversion_report(mg.convert(model))
    assert len(report.converted) == 13 and not report.left
    actual = torch.autograd.grad(model(tokens).square().sum(), list(model.parameters()))
    torch.testing.assert_close(actual, expected)
    with pytest.raises(ValueError, match=r"^Layer 'layer.1.attention.self.query': A dense layer of 8 features in"):
        model.layer[1]["attention"]["self"](torch.randn(2, 3))


def test_a_forward_replaced_on_the_instance() -> None:
    model: Any = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    model.forward = lambda x: model[1](model[0](x) - 1)
    x = torch.randn(3, 4)
    expected = model(x)
    assert torch.equal(mg.convert(model)(x), expected)


def test_deep_nesting() -> None:
    model: nn.Module = nn.Linear(4, 4)
    for _ in range(100):
        model = nn.Sequential(model)
    (name,) = mg.conversion_report(mg.convert(model)).converted
    assert name == ".".join(["0"] * 100)
    with pytest.raises(ValueError, match=f"^Layer '{name}': "):
        model(torch.randn(2, 3))


def test_a_part_is_named_after_the_model_that_was_converted_last() -> None:
    model: Any = nn.Sequential(nn.Sequential(nn.Linear(4, 4)))
    mg.convert(model[0][0])
    with pytest.raises(ValueError, match="^A dense layer of 4 features in"):
        model(torch.randn(2, 3))
    mg.convert(model[0])
    with pytest.raises(ValueError, match="^Layer '0': "):
        model(torch.randn(2, 3))
    mg.convert(model)
    with pytest.raises(ValueError, match="^Layer '0.0': "):
        model(torch.randn(2, 3))


@pytest.mark.filterwarnings(TRACING)
@pytest.mark.parametrize("call", ["torch.compile", "compile"])
def test_compiled_before_it_was_converted(call: str) -> None:
    model: Any = Branches()
    compiled = model
    if call == "compile":
        model.compile(backend="aot_eager")
    else:
        compiled = torch.compile(model, backend="aot_eager")
    x = torch.randn(3, 4)
    expected = compiled(x)
    mg.convert(compiled)
    torch.testing.assert_close(compiled(x), expected)
    assert type(model.branches["left"][1]) is not nn.LeakyReLU
    torch.testing.assert_close(mg.revert(compiled)(x), expected)


def test_checkpoints_fit_before_and_after() -> None:
    plain, model = Branches(), mg.convert(Branches())
    model.load_state_dict(plain.state_dict())
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    loaded = Branches()
    loaded.load_state_dict(torch.load(file, weights_only=True), assign=True)
    x = torch.randn(3, 4)
    assert torch.equal(loaded(x), plain(x))
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    whole = torch.load(file, weights_only=False)
    assert torch.equal(whole(x), model(x))
    assert torch.equal(pickle.loads(pickle.dumps(mg.revert(whole)))(x), plain(x))


class Lit(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, index: int) -> Tensor:
        x, y = batch
        return F.mse_loss(self(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return mg.GradientDescent(self.parameters(), lr=0.1)


def test_a_lightning_module_is_a_model_as_others(tmp_path: Any) -> None:
    batches: Any = [(torch.randn(5, 4), torch.randn(5, 2)) for _ in range(4)]
    original = Lit()
    model = mg.convert(copy.deepcopy(original))
    assert [row.status for row in mg.conversion_report(model)] == ["converted"] * 3
    for module in (original, model):
        trainer = lightning.Trainer(
            max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, default_root_dir=tmp_path,
        )  # fmt: skip
        trainer.fit(module, torch.utils.data.DataLoader(batches, batch_size=None))
    torch.testing.assert_close(model.state_dict(), original.state_dict())


@pytest.mark.parametrize("selection", [3, [0], [nn.ReLU()]])
def test_a_selection_that_is_no_name(selection: Any) -> None:
    with pytest.raises(TypeError) as error:
        mg.convert(Branches(), exclude=selection)
    assert str(error.value) == (
        "convert expected `exclude` to be a name, several names, or a function (name, module) -> bool, got "
        f"{selection!r}. Names are those of model.named_modules()."
    )
