"""`manualgrad bench` and `measure` run, for nets and for a model of one's own, and say what they have found."""

import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from manualgrad.bench import CaseError, Row, Rows, measure
from manualgrad.bench.case import Case
from manualgrad.bench.layers import layers_of
from manualgrad.bench.plot import plot
from manualgrad.bench.timing import checked_ways
from manualgrad.bench.ways import WAYS
from manualgrad.cli.bench import PRESETS, _parser, main
from manualgrad.cli.main import main as command
from tests.bench.own_models import MINE


OF_TORCH = [name for name in WAYS if name not in ("torch.compile", "JAX", "scikit-learn")]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with the user's `mine.py` in it."""
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("mine", None)


def test_a_quick_run_prints_a_table_and_writes_the_same_rows_and_a_plot(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(["--quick", "--out", str(tmp_path / "a"), "--threads", "1"]) == 0
    printed = capsys.readouterr().out
    plain, factored, floor = json.loads((tmp_path / "a" / "bench.json").read_text())
    assert (plain["way"], factored["way"], floor["way"]) == ("plain", "factored", "floor of memory and arithmetic")
    assert plain["speed"] == 1 and factored["speed"] == plain["seconds"] / factored["seconds"]
    assert 0 < floor["seconds"] < plain["seconds"] and factored["weights_apart"] < 1e-3
    if plain["peak_bytes"] is not None:  # Linux
        assert factored["peak_bytes"] < 0.5 * plain["peak_bytes"] and plain["peak_bytes"] >= 4 * 900 * 900
    assert (tmp_path / "a" / "bench.png").read_bytes().startswith(b"\x89PNG")
    assert re.search(r"^900-900-10 relu, gradient_descent; .*, 1 of \d+ cores, glibc malloc, torch ", printed)
    assert re.search(r"^ +batch 8: ms +x plain +peak MiB$", printed, re.MULTILINE)
    assert re.search(r"^factored +\d.* +\d+\.\d\d +\d", printed, re.MULTILINE)
    assert re.search(r"^\* +\(900, 900\)  factored, 8 rows: 56.2 KiB for 3.09 MiB$", printed, re.MULTILINE)
    assert re.search(r"^\* +\(10, 900\)   dense: fewer than 32768 entries$", printed, re.MULTILINE)
    assert re.search(
        r"^Batch 8: (not )?worth it: 'factored' takes \d+% of the time of 'plain' and ", printed, re.MULTILINE
    )
    assert main(["--draw", str(tmp_path / "a" / "bench.json"), "--out", str(tmp_path / "b")]) == 0
    assert capsys.readouterr().out.split("\nWritten")[0].strip() == printed.split("\nWritten")[0].strip()


def test_presets_are_cells_that_exist() -> None:
    for models, line in (cells for preset in PRESETS.values() for cells in preset):
        arguments = _parser().parse_args(shlex.split(line))
        for model in models:
            Case(model, 8, loss=arguments.loss).check_names()


@pytest.mark.parametrize("optimizer", ["gradient_descent", "momentum", "adamw", "rmsprop"])
@pytest.mark.parametrize("clip", [False, True])
def test_every_way_reaches_the_weights_of_plain_pytorch(optimizer: str, clip: bool) -> None:
    case = Case("260-130-5 sigmoid sigmoid", 3, optimizer, clip=clip)
    ways, apart, skipped = checked_ways(case, OF_TORCH)
    assert {"plain", "plain, foreach", "converted", "factored"} <= {*ways} == {*apart} == {*OF_TORCH} - {*skipped}
    assert all(distance < 0.01 for distance in apart.values())
    if optimizer == "gradient_descent" and not clip:
        assert not skipped
    if optimizer == "rmsprop":
        assert skipped["plain, fused"] == "rmsprop has no fused form."
    if clip:
        assert (
            skipped["optimizer in backward"] == "It cannot clip: the global norm is known only after the backward pass."
        )
        assert skipped["NumPy float32"] == "It is written here for steps without clipping."


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_other_libraries_reach_them_too(optimizer: str) -> None:
    # In a process of its own: JAX, where it is installed, leaves threads behind that forbid a fork for good.
    rivals = ("JAX", "scikit-learn")
    rows = measure("7-5-4 tanh sigmoid", 3, optimizer=optimizer, ways=rivals, memory=False, threads=1, seconds=0)
    of_rivals = {row.way: row for row in rows if row.way in rivals}
    if optimizer == "adamw":
        assert of_rivals.pop("scikit-learn").note == "It is written here for gradient descent."
    for row in of_rivals.values():
        assert (
            row.seconds and row.weights_apart is not None and row.weights_apart < 0.01
        ) or "No module named" in row.note


def test_a_way_with_other_weights_is_no_rival(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(WAYS, "factored", lambda case: WAYS["plain"](case._replace(optimizer="momentum")))
    with pytest.raises(
        RuntimeError, match="Expected the same weights after 5 steps in every way to train, got others from f"
    ):
        checked_ways(Case("6-5-4 relu", 3), ["plain", "factored"])


def test_a_model_of_ones_own(folder: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["--model", "mine:towers", "--batch", "4", "--no-memory", "--seconds", "0", "--threads", "1",
                 "--allocators", "glibc malloc", "--out", "."]) == 0  # fmt: skip
    printed = capsys.readouterr().out
    assert printed.startswith("mine:towers, adamw; ")
    layers = {row["way"]: row["layers"] for row in json.loads(Path("bench.json").read_text())}.pop("factored")
    assert layers == [
        ["tower", 1, "(256, 256)", True, "4 rows: 8 KiB for 256 KiB"],
        ["head", 1, "(300, 256)", True, "4 rows: 8.69 KiB for 300 KiB"],
    ]
    assert re.search(r"^TrainStep, batch 4: TrainStep expected .*\.$", printed, re.MULTILINE)
    assert re.search(r"^Batch 4: (not )?worth it: '.*' takes \d+% of the time of 'plain.*'\.$", printed, re.MULTILINE)


@pytest.mark.parametrize(
    ("model", "loss", "applies"), [("with_loss", None, False), ("heads", "mine:both", False), ("stack", "mse", True)]
)
def test_inputs_by_name_several_outputs_and_losses_of_ones_own(
    folder: Path, model: str, loss: str | None, applies: bool
) -> None:
    ways, _, notes = checked_ways(Case(f"mine:{model}", 4, loss=loss), ["plain", "converted", "factored", "TrainStep"])
    assert list(notes) == ([] if applies else ["TrainStep"])
    task = ways["factored"].task
    assert task and {layer.why for layer in layers_of(task)} == {"dense: fewer than 32768 entries"}


EXPECTED = "Expected mine:{name}(batch) to return (model, inputs, targets), got "


@pytest.mark.parametrize(
    ("model", "options", "sentence"),
    [
        ("nowhere:make", {}, "Expected the model 'nowhere:make' to be there, got ModuleNotFoundError: No module named 'nowhere'. "
         "Run in the folder of its file, or install its package."),
        ("mine:net", {}, "Expected the model 'mine:net' to be there, got AttributeError: module 'mine' has no attribute 'net'. "
         "Run in the folder of its file, or install its package."),
        ("mine:fails", {}, EXPECTED + "for 4 OSError: no such weights: model.bin."),
        ("mine:no_batch", {}, EXPECTED + "for 4 TypeError: no_batch() takes 0 positional arguments but 1 was given."),
        ("mine:only_a_model", {}, EXPECTED + "Linear."),
        ("mine:wrong_width", {}, "Expected the model of mine:wrong_width to take its inputs, got RuntimeError: mat1 and mat2 "
         "shapes cannot be multiplied (4x5 and 4x3)."),
        ("mine:stack", {"loss": "cross_entropy"}, None),
        ("mine:heads", {}, "Expected the loss MSELoss to take the model's outputs and the targets of mine:heads, got "
         "AttributeError: 'tuple' object has no attribute 'size'. Pass another with --loss."),
        ("mine:vector", {}, "Expected the loss of mine:vector to be one finite number, got a tensor "),
        ("mine:unbounded", {}, "Expected the loss of mine:unbounded to be one finite number, got a tensor "),
        ("mine:frozen", {}, "Expected parameters to train in mine:frozen, got none: all are frozen, or it has none."),
        ("mine:stack", {"optimizer": "muon"}, "Expected muon to train mine:stack in plain PyTorch, got ValueError: Muon only "
         "supports 2D parameters whereas we found a parameter with size: torch.Size([3])."),
        ("mine:stack", {"loss": "mine:hinge"}, "Expected the loss 'mine:hinge' to be there, got AttributeError: module 'mine' "
         "has no attribute 'hinge'. Run in the folder of its file, or install its package."),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_sentence(folder: Path, model: str, options: dict, sentence: str | None) -> None:
    if options.get("optimizer") == "muon" and not hasattr(torch.optim, "Muon"):
        pytest.skip("this release of torch has no Muon")
    case = Case(model, 4, **options)
    if sentence is None:  # class probabilities are targets of the cross-entropy too
        return case.check()
    case.check_names()
    with pytest.raises(CaseError) as error:
        case.check()
    assert str(error.value).startswith(sentence.format(name=model[5:]))
    assert "\n" not in str(error.value)


def test_half_precision_is_measured_and_its_weights_are_not_judged(folder: Path) -> None:
    ways, apart, _ = checked_ways(Case("mine:in_bfloat16", 3, "momentum"), ["plain", "plain, fused", "factored"])
    assert apart["plain, fused"] > 0.01  # PyTorch's own forms differ
    task = ways["factored"].task
    assert task and layers_of(task)[0].why == "3 rows: 3 KiB for 128 KiB"


def test_weights_that_do_not_stay_finite_are_refused_by_name(folder: Path) -> None:
    sentence = "Expected the weights of mine:diverges to stay finite in 5 steps of sgd with PyTorch's default options "
    with pytest.raises(CaseError, match=re.escape(sentence)):
        checked_ways(Case("mine:diverges", 4, "sgd"), ["plain", "factored"])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--model", "784"], "Expected the model to be a net such as '784-30-10 sigmoid' (activations: relu, sigmoid, tanh) or "
         "a function such as 'package.module:make', got '784'."),
        (["--model", "8-2 relu", "--loss", "cross_entropy"], "Expected a net to be trained with the loss 'mse', got "
         "'cross_entropy'. Leave it out."),
        (["--model", "mine:stack", "--loss", "huber"], "Expected a loss, one of mse, cross_entropy, binary_cross_entropy or a "
         "function such as 'package.module:loss', got 'huber'."),
        (["--model", "mine:fails"], "Expected mine:fails(batch) to return (model, inputs, targets), got for 8 OSError: no such "
         "weights: model.bin."),
    ],
)  # fmt: skip
def test_the_command_says_it_and_ends_with_2(
    folder: Path, capsys: pytest.CaptureFixture, arguments: list[str], sentence: str
) -> None:
    assert command(["bench", *arguments]) == 2
    assert capsys.readouterr() == ("", f"manualgrad bench: error: {sentence}\n")
    assert not Path("manualgrad_bench").exists()


def test_unknown_names_are_refused_in_python_too() -> None:
    with pytest.raises(
        CaseError, match=r"^Expected an optimizer, one of gradient_descent, sgd, momentum, .*, got 'lion'\.$"
    ):
        measure("8-2 relu", optimizer="lion")
    with pytest.raises(CaseError, match=r"^Expected ways to train, some of plain, .*, got 'slowly'\.$"):
        measure("8-2 relu", ways=["slowly"])
    with pytest.raises(
        CaseError, match=r"^Expected an allocator that is there, .*, got 'mimalloc'\. To install jemalloc on "
    ):
        measure("8-2 relu", allocator="mimalloc")


def of_case(**times: tuple[float, int]) -> Rows:
    best = min(seconds for way, (seconds, _) in times.items() if way.startswith("plain"))
    about = "mine:make", "adamw", False, "a machine", 8
    return Rows(Row(*about, way, seconds=s, speed=best / s, peak_bytes=peak) for way, (s, peak) in times.items())


@pytest.mark.parametrize(
    ("times", "verdict"),
    [
        ({"plain": (2.0, 100), "factored": (1.0, 25)}, "worth it: 'factored' takes 50% of the time of 'plain' and 25% of its "
         "peak memory beyond weights and state."),
        ({"plain": (1.0, 100), "factored": (1.02, 25), "converted": (0.99, 100)}, "worth it: 'factored' takes 102% of the time "
         "of 'plain' and 25% of its peak memory beyond weights and state."),
        ({"plain": (1.0, 100), "factored": (1.1, 25)}, "not worth it: 'factored' takes 110% of the time of 'plain' and 25% of "
         "its peak memory beyond weights and state."),
    ],
)  # fmt: skip
def test_the_verdict_is_one_sentence(times: dict[str, tuple[float, int]], verdict: str) -> None:
    rows = of_case(**times)
    assert rows.verdicts() == [f"batch 8: {verdict}"]
    assert str(rows).splitlines()[-1] == f"Batch 8: {verdict}"
    assert "&#x27;plain&#x27;" in rows._repr_html_()


@pytest.mark.parametrize("sizes", [(1.46, 1.9), (0.02, 3, 700), (2, 2)])
def test_the_memory_axis_has_plain_numbers(tmp_path: Path, sizes: tuple[float, ...]) -> None:
    about = "4-3 relu", "sgd", False, "a machine"
    rows = Rows(Row(*about, 8 * 2**i, "factored", 1.0, peak_bytes=int(size * 2**20)) for i, size in enumerate(sizes))
    plot(rows, tmp_path / "bench.svg")
    labels = re.findall(r"<!-- (.*) -->", (tmp_path / "bench.svg").read_text())  # matplotlib's note of each text
    of_memory = labels[labels.index("4-3 relu: speed") : labels.index("4-3 relu: memory")]
    assert len([label for label in of_memory if re.fullmatch(r"\d+(\.\d+)?", label)]) >= 2
    assert not any("10^{" in label for label in of_memory)
