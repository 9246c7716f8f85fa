"""convert and revert: the same model in every respect but who differentiates it."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import manualgrad as mg
from tests.conversion.models_to_convert import Branches, Convolutional, Transformer, identity_of


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
        (lambda name, layer: "enc" in name and layer.out_features == 8, None, ["encoder.layers.0.linear2"]),
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


@pytest.mark.parametrize(
    "include, exclude, converted, activations",
    [
        ("branches.left", None, ["branches.left.0", "branches.left.2"], ["branches.left.1"]),
        ("branches.left.1", None, [], ["branches.left.1"]),
        (None, "*.[13]", ["branches.left.0", "branches.left.2", "branches.right.0", "branches.right.2"], []),
        (lambda name, module: isinstance(module, nn.ELU), None, [], ["branches.right.1"]),
        (
            "branches.right",
            lambda name, module: isinstance(module, nn.Linear),
            [],
            ["branches.right.1", "branches.right.3"],
        ),
    ],
)
def test_activations_are_selected_as_layers_are(include, exclude, converted, activations):
    report = mg.conversion_report(mg.convert(Branches(), include, exclude))
    assert (report.converted, report.converted_activations) == (converted, activations)


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
        "0      Dense       converted",
        "1      ReLU        converted",
        "2      LazyLinear  left       lazy: its shape is not known yet; run one batch through the model, then convert",
        "1 of 2 linear layers and 1 of 1 activations converted.",
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


def test_revert_refuses_to_lose_an_activation():
    model: Any = mg.convert(nn.Sequential(nn.Linear(3, 3), nn.ReLU()))
    model[0].activation = mg.activations["tanh"]
    with pytest.raises(RuntimeError) as error:
        mg.revert(model)
    assert str(error.value) == (
        "revert expected '0' to return z, as convert left it, got the activation 'tanh', which an nn.Linear cannot have. "
        "Set its activation to mg.activations['identity'] and put a module in its place."
    )
    assert type(model[0]) is mg.Dense and type(model[1]) is not nn.ReLU  # nothing was changed


def test_revert_refuses_an_activation_of_another_class():
    model = mg.convert(nn.Sequential(nn.Linear(3, 3), nn.ReLU()))
    model[1].__class__ = type("Mine", (type(model[1]),), {})
    with pytest.raises(RuntimeError) as error:
        mg.revert(model)
    assert str(error.value).startswith(
        "revert expected '1' to be a ReLU, as convert left it, got Mine. Undo what changed"
    )
    assert type(model[0]) is mg.Dense


def test_hooks_that_come_after_the_conversion_stay_at_revert():
    model = mg.convert(nn.Sequential(nn.Linear(3, 3), nn.ReLU()))
    seen = []
    model[1].register_forward_hook(lambda module, inputs, output: seen.append(output))
    mg.revert(model)(torch.randn(2, 3))
    assert len(seen) == 1 and type(model[1]) is nn.ReLU


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
            mg.convert(model, **{argument: ["branches.left", "branches.middle.*"]})  # type: ignore[arg-type]
        assert str(error.value) == (
            f"convert expected `{argument}` to name linear layers or activations, got 'branches.middle.*', which matches none. "
            "Use names from this list, or wildcards: branches.left.0, branches.left.1, branches.left.2, branches.right.0, "
            "branches.right.1, branches.right.2, branches.right.3."
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
