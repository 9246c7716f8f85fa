"""convert and revert: the same model in every respect but who differentiates it."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune

import manualgrad as mg


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(4, 6, batch_first=True)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])


class Convolutional(nn.Sequential):
    def __init__(self):
        features = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
        classifier = nn.Sequential(
            nn.Linear(36, 8), nn.ReLU(inplace=True), nn.Linear(8, 8), nn.GELU("tanh"), nn.Dropout(0.5), nn.Linear(8, 3)
        )
        super().__init__(features, classifier)


class TiedEmbeddings(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 5)
        self.mix = nn.Linear(5, 5)
        self.head = nn.Linear(5, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        return self.head(torch.tanh(self.mix(self.embedding(tokens))))


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.branches = nn.ModuleDict(
            {
                "left": nn.Sequential(nn.Linear(4, 6), nn.LeakyReLU(0.2), nn.Linear(6, 3)),
                "right": nn.Sequential(nn.Linear(4, 6), nn.ELU(0.7), nn.Linear(6, 3), nn.Softplus(2.0, 5.0)),
            }
        )

    def forward(self, x):
        return self.branches["left"](x) + self.branches["right"](x)


class Transformer(nn.Transformer):
    def __init__(self):
        super().__init__(8, 2, 1, 1, 16, dropout=0.1, batch_first=True)

    def forward(self, x):  # type: ignore[override]
        return super().forward(x, x)


def parametrized():
    return nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 6)), nn.Tanh(), nn.Linear(6, 3))


class Clamp(torch.autograd.Function):
    """Something for a hook to do that changes training."""

    @staticmethod
    def forward(ctx, x):
        return x * 1.5

    @staticmethod
    def backward(ctx, g):
        return g * 0.5


def halve(module: nn.Module, grad_input: Any, grad_output: Any) -> tuple[Tensor]:
    return (grad_input[0] * 0.5,)


def hooked():
    model: Any = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.Sigmoid(), nn.Linear(6, 3))
    model[0].register_forward_hook(lambda module, inputs, output: Clamp.apply(output))
    model[2].register_full_backward_hook(halve)
    model[4].register_forward_pre_hook(lambda module, inputs: (inputs[0] + 1,))
    model[4].weight.register_hook(lambda g: g * 2)
    return model


def scripted():
    with pytest.warns(DeprecationWarning):
        part = torch.jit.script(nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3)))
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), part)


def table(*shape):
    return lambda dtype: torch.randn(*shape, dtype=dtype)


MODELS = {
    "transformer": (Transformer, table(2, 5, 8)),
    "lstm with a linear head": (Recurrent, table(3, 5, 4)),
    "cnn with a classifier": (Convolutional, table(4, 1, 8, 8)),
    "tied embeddings": (TiedEmbeddings, lambda dtype: torch.randint(11, (3, 4))),
    "sequentials in a ModuleDict": (Branches, table(5, 4)),
    "parametrized linear": (parametrized, table(5, 4)),
    "hooks": (hooked, table(5, 4)),
    "scripted submodule": (scripted, table(5, 4)),
}


def identity_of(model: nn.Module) -> dict:
    """Every module, parameter, buffer and hook of the tree, by identity, and what each module holds."""
    return {
        name: (module, type(module), {key: dict(v) if isinstance(v, dict) else v for key, v in module.__dict__.items()})
        for name, module in model.named_modules(remove_duplicate=False)
        if not isinstance(module, torch.jit.ScriptModule)
    }


@pytest.mark.parametrize("build, inputs", MODELS.values(), ids=MODELS.keys())
def test_revert_gives_back_the_identical_module_tree(build, inputs):
    model = build()
    before, keys, order = identity_of(model), list(model.state_dict()), [id(p) for p in model.parameters()]

    assert mg.convert(model) is model
    assert list(model.state_dict()) == keys
    assert [id(p) for p in model.parameters()] == order
    assert mg.conversion_report(model).converted

    assert mg.revert(model) is model
    assert identity_of(model) == before


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.float64, 1e-12)], ids=str)
@pytest.mark.parametrize("build, inputs", MODELS.values(), ids=MODELS.keys())
def test_a_converted_model_trains_to_the_same_weights(build, inputs, dtype, tolerance):
    original = build().to(dtype)
    with torch.random.fork_rng():
        converted = build().to(dtype)
    converted.load_state_dict(original.state_dict())
    mg.convert(converted)
    x = inputs(dtype)
    target = torch.randn_like(original(x))
    for model in (original, converted):
        torch.manual_seed(1)  # for dropout
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.5)
        for _ in range(100):
            optimizer.zero_grad()
            F.mse_loss(model(x), target).backward()
            optimizer.step()
    for (name, expected), actual in zip(original.named_parameters(), converted.parameters(), strict=True):
        difference = (actual - expected).abs().max() / expected.abs().max()
        assert difference <= tolerance, f"{name}: {difference}"


def test_a_converted_model_trains_to_the_same_weights_on_factored_gradients():
    build = lambda: nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 256))  # noqa: E731
    original, converted = build().double(), build().double()
    converted.load_state_dict(original.state_dict())
    mg.convert(converted)
    x, target = torch.randn(4, 256).double(), torch.randn(4, 256).double()
    optimizers = torch.optim.SGD(original.parameters(), lr=0.1), mg.GradientDescent(converted.parameters(), lr=0.1)
    for _ in range(20):
        for model, optimizer in zip((original, converted), optimizers, strict=True):
            optimizer.zero_grad()
            F.mse_loss(model(x), target).backward()
        assert isinstance(converted[0].weight.grad, mg.FactoredGradient)
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(converted.state_dict(), original.state_dict(), rtol=1e-12, atol=1e-13)


FUSED = [
    nn.ReLU(),
    nn.ReLU(inplace=True),
    nn.LeakyReLU(),
    nn.LeakyReLU(0.2),
    nn.LeakyReLU(-0.3),
    nn.ELU(),
    nn.ELU(0.3),
    nn.Sigmoid(),
    nn.Tanh(),
    nn.Softplus(),
    nn.Softplus(2.0, 0.5),
    nn.GELU(),
    nn.GELU("tanh"),
    nn.SiLU(inplace=True),
]


@pytest.mark.parametrize("activation", FUSED, ids=str)
def test_an_activation_is_fused_with_its_parameters(activation):
    model = nn.Sequential(nn.Linear(4, 50), activation, nn.Linear(50, 2)).double()
    x = 3 * torch.randn(5, 4, dtype=torch.float64)
    expected = model(x), torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
    mg.convert(model)
    assert type(model[1]) is nn.Identity
    assert type(model[0]) is mg.Dense and model[0].activation.name != "identity"
    actual = model(x), torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-13)
    assert mg.revert(model)[1] is activation


class MyReLU(nn.ReLU):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    "activation",
    [MyReLU(), nn.PReLU(), nn.Softmax(-1), nn.RReLU(), nn.CELU(2.0), nn.Hardtanh(), nn.LayerNorm(4)],
    ids=str,
)
def test_what_is_not_known_stays_unfused(activation):
    model = mg.convert(nn.Sequential(nn.Linear(4, 4), activation))
    assert model[1] is activation
    assert model[0].activation is mg.activations["identity"]


def shared_activation():
    activation = nn.ReLU()
    return nn.Sequential(nn.Linear(4, 4), activation, nn.Linear(4, 4), activation)


def shared_layer():
    layer = nn.Linear(4, 4)
    return nn.Sequential(layer, nn.ReLU(), layer)


def hooked_layer():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    model[0].register_forward_hook(lambda module, inputs, output: None)
    return model


def hooked_activation():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    model[1].register_full_backward_pre_hook(lambda module, grad_output: None)
    return model


class Reversed(nn.Sequential):
    def forward(self, x):
        for layer in reversed(self):
            x = layer(x)
        return x


@pytest.mark.parametrize(
    "build, note",
    [
        (shared_activation, "ReLU not fused: it is used in several places"),
        (shared_layer, "ReLU not fused: the layer is used in several places; also 2"),
        (hooked_layer, "ReLU not fused: the layer has hooks, which would see a instead of z"),
        (hooked_activation, "ReLU not fused: it has hooks or a forward of its own"),
        (lambda: Reversed(nn.Linear(4, 4), nn.ReLU()), ""),
    ],
)
def test_an_activation_that_others_see_stays_unfused(build, note):
    model = build()
    x = torch.randn(3, 4)
    expected, activation = model(x), model[1]
    mg.convert(model)
    assert torch.equal(model(x), expected)
    assert model[1] is activation
    assert mg.conversion_report(model)[0].note == note


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def patched():
    layer = nn.Linear(3, 3)
    layer.forward = lambda x: x  # type: ignore[method-assign, assignment]
    return layer


def integer():
    layer = nn.Linear(3, 3)
    layer.weight = nn.Parameter(torch.ones(3, 3, dtype=torch.int8), requires_grad=False)
    return layer


class QuantisedLinear(nn.Linear):
    __module__ = "torch.ao.nn.quantized.modules.linear"


LEFT = {
    "subclass": (lambda: Doubled(3, 3), "of type Doubled, not nn.Linear itself: what it overrides would be lost"),
    "attention": (
        lambda: nn.MultiheadAttention(4, 2).out_proj,
        "read, never called (nn.MultiheadAttention)",
    ),
    "lazy": (
        lambda: nn.LazyLinear(3),
        "lazy: its shape is not known yet; run one batch through the model, then convert",
    ),
    "parametrized": (
        lambda: parametrizations.orthogonal(nn.Linear(3, 3)),
        "parametrized: convert it before registering the parametrization",
    ),
    "pruned": (
        lambda: prune.l1_unstructured(nn.Linear(3, 3), "weight", 0.5),
        "its weight is not a Parameter: a hook recomputes it (weight_norm, spectral_norm, pruning)",
    ),
    "patched": (patched, "its forward has been replaced on the instance"),
    "integer": (integer, "quantised: its weight is torch.int8"),
    "quantised": (lambda: QuantisedLinear(3, 3), "quantised: it has a kernel of its own"),
    "dense": (lambda: mg.Dense(3, 3), "a Dense from the start"),
}


@pytest.mark.parametrize("build, reason", LEFT.values(), ids=LEFT.keys())
def test_what_is_left_alone_and_why(build, reason):
    model = nn.Sequential(build(), nn.ReLU())
    before = identity_of(model)
    mg.convert(model)
    assert identity_of(model) == before
    assert mg.conversion_report(model).left == {"0": reason}
    assert identity_of(mg.revert(model)) == before


def test_a_scripted_linear_is_reported():
    model = mg.convert(scripted())
    report = mg.conversion_report(model)
    assert report.converted == ["0"]
    assert report.left == dict.fromkeys(
        ["2.0", "2.2"], "scripted: its code is compiled; convert before torch.jit.script"
    )


def test_converting_twice_changes_nothing():
    model = mg.convert(Convolutional())
    before = identity_of(model)
    assert identity_of(mg.convert(model)) == before


def test_a_lone_layer_is_converted_and_reverted():
    layer = nn.Linear(3, 2)
    assert type(mg.convert(layer)) is mg.Dense
    assert str(mg.conversion_report(layer)).splitlines()[2].split() == [
        "(the",
        "model",
        "itself)",
        "Dense",
        "converted",
    ]
    assert type(mg.revert(layer)) is nn.Linear
    assert layer.__dict__.keys() == nn.Linear(3, 2).__dict__.keys()


def test_flags_devices_dtypes_and_parameters_are_kept():
    model = nn.Sequential(nn.Linear(3, 4, dtype=torch.bfloat16), nn.ReLU(), nn.Linear(4, 2, device="meta")).eval()
    model[0].weight.requires_grad_(False)
    parameters = list(model.parameters())
    mg.convert(model)
    assert [id(p) for p in model.parameters()] == [id(p) for p in parameters]
    assert not model[0].weight.requires_grad and model[0].bias.requires_grad
    assert not any(module.training for module in model.modules())
    assert model[0].weight.dtype == torch.bfloat16 and model[2].weight.is_meta
    model.train()
    mg.revert(model)
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize(
    "include, exclude, converted",
    [
        ("encoder", None, ["encoder.layers.0.linear1", "encoder.layers.0.linear2"]),
        ("*.linear1", None, ["encoder.layers.0.linear1", "decoder.layers.0.linear1"]),
        (["*.linear1", "decoder.*"], "encoder", ["decoder.layers.0.linear1", "decoder.layers.0.linear2"]),
        (None, ["*.layers.?.linear2"], ["encoder.layers.0.linear1", "decoder.layers.0.linear1"]),
        (lambda name, layer: layer.out_features == 8 and "enc" in name, None, ["encoder.layers.0.linear2"]),
        (None, lambda name, layer: True, []),
    ],
)
def test_include_and_exclude(include, exclude, converted):
    report = mg.conversion_report(mg.convert(Transformer(), include, exclude))
    assert report.converted == converted
    left = report.left.get(
        "encoder.layers.0.linear2", "not selected by include and exclude, or convert has not been called"
    )
    assert left == "not selected by include and exclude, or convert has not been called"


def test_a_second_call_converts_more():
    model: Any = Branches()
    mg.convert(model, include="branches.left")
    mg.convert(model, include="branches.right")
    assert len(mg.conversion_report(model).converted) == 4
    mg.revert(model.branches["left"])
    assert mg.conversion_report(model).converted == ["branches.right.0", "branches.right.2"]


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["copy", "pickle"]
)
def test_a_copy_of_a_converted_model_reverts(copied):
    original: Any = Branches()
    x = torch.randn(5, 4)
    model: Any = copied(mg.convert(original))
    assert model.branches["left"][1] is not original.branches["left"][1]
    mg.revert(model)
    assert torch.equal(model(x), original(x))
    assert type(model.branches["right"][1]) is nn.ELU and model.branches["right"][1].alpha == 0.7
    assert mg.conversion_report(original).converted  # the original is as it was


def test_a_layer_in_two_places_is_converted_once_and_stays_one():
    layer = nn.Linear(3, 3)
    model: Any = mg.convert(nn.ModuleDict({"a": layer, "b": nn.Sequential(layer)}))
    assert model["a"] is model["b"][0] is layer
    (row,) = mg.conversion_report(model)
    assert (row.name, row.status, row.note) == ("a", "converted", "also b.0")


def test_the_report_prints_as_a_table():
    model = mg.convert(nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.LazyLinear(2)))
    assert str(mg.conversion_report(model)).splitlines() == [
        "layer  type        status     note",
        "----------------------------------",
        "0      Dense       converted  with ReLU",
        "2      LazyLinear  left       lazy: its shape is not known yet; run one batch through the model, then convert",
        "1 of 2 linear layers converted.",
    ]


def test_a_converted_layer_can_be_parametrized_and_back():
    model = mg.convert(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2)))
    parametrizations.orthogonal(model[0])
    with pytest.raises(RuntimeError) as error:
        mg.revert(model)
    assert str(error.value) == (
        "revert expected '0' to be a Dense, as convert left it, got ParametrizedDense. Undo what changed its class first "
        "(for a parametrization: torch.nn.utils.parametrize.remove_parametrizations)."
    )
    assert type(model[1]) is mg.Dense  # nothing was changed
    parametrize.remove_parametrizations(model[0], "weight")
    assert [type(layer) for layer in mg.revert(model)] == [nn.Linear, nn.Linear]


def test_revert_without_the_activations_place():
    model = mg.convert(nn.Sequential(nn.Linear(3, 3), nn.ReLU()))
    with pytest.raises(RuntimeError) as error:
        mg.revert(model[0])
    assert str(error.value) == (
        "revert expected the nn.Identity that stands for the ReLU of '0' in the model, got a model without it. "
        "Revert the whole model, or put the nn.Identity back in its slot."
    )
    assert type(model[0]) is mg.Dense


def test_revert_would_lose_a_hook():
    model = mg.convert(nn.Sequential(nn.Linear(3, 3), nn.ReLU()))
    handle = model[1].register_forward_hook(lambda module, inputs, output: None)
    with pytest.raises(RuntimeError) as error:
        mg.revert(model)
    assert str(error.value) == (
        "revert expected no hooks on the nn.Identity that stands for the ReLU of '0', got some, which would be lost. "
        "Remove them, and register them again on the activation after revert."
    )
    handle.remove()
    assert type(mg.revert(model)[1]) is nn.ReLU


def test_errors_of_a_converted_layer_name_its_place():
    model = mg.convert(Transformer())
    with pytest.raises(ValueError) as error:
        model.encoder.layers[0].linear1(torch.randn(2, 3))
    assert str(error.value) == (
        "Layer 'encoder.layers.0.linear1': A dense layer of 8 features in and 16 out expected an input of shape (..., 8), "
        "got (2, 3). Change the input's last dimension or make the layer of that size."
    )
    with pytest.raises(TypeError) as type_error:
        model.encoder.layers[0].linear2(torch.randn(2, 16).double())
    assert str(type_error.value) == (
        "Layer 'encoder.layers.0.linear2': A dense layer of 16 features in and 8 out expected an input of its weight's "
        "dtype torch.float32, got torch.float64. Convert the input with input.to(torch.float32) or the layer with layer.to(...)."
    )


def test_a_name_that_matches_nothing():
    model = Branches()
    for argument in ("include", "exclude"):
        with pytest.raises(ValueError) as error:
            mg.convert(model, **{argument: ["branches.left", "branches.middle.*"]})
        assert str(error.value) == (
            f"convert expected `{argument}` to name linear layers, got 'branches.middle.*', which matches none. Use names from "
            "this list, or wildcards: branches.left.0, branches.left.2, branches.right.0, branches.right.2."
        )
        assert not mg.conversion_report(model).converted


@pytest.mark.parametrize("function", [mg.convert, mg.revert, mg.conversion_report])
def test_not_a_module(function):
    with pytest.raises(TypeError) as error:
        function([nn.Linear(2, 2)])
    assert str(error.value) == f"{function.__name__} expected a torch.nn.Module, got list. Pass the model itself."


def test_symbolic_tracing_records_dense_layers():
    model = mg.convert(Branches())
    graph = torch.fx.symbolic_trace(model)
    x = torch.randn(3, 4)
    gradients = [torch.autograd.grad(m(x).sum(), list(m.parameters())) for m in (model, graph, copy.deepcopy(graph))]
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=0)
    torch.testing.assert_close(gradients[2], gradients[0], rtol=0, atol=0)
    assert [node.target for node in graph.graph.nodes].count(mg.dense) == 4


def test_the_fast_path_of_a_transformer_in_evaluation():
    model = Transformer().eval()
    x = torch.randn(2, 5, 8)
    with torch.no_grad():
        expected: Tensor = model(x)
        torch.testing.assert_close(mg.convert(model)(x), expected)
