"""print(trace): the four steps with every number, against the hand; notes where an equation does not hold; rich."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from io import StringIO
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

import manualgrad as mg
from manualgrad.explain.terminal import images_as_text, plain
from tests.xor import Y, hand_numbers, xor_net, xor_trace


X = torch.linspace(-1, 1, 24).view(8, 3)
TITLE = re.compile(r"(\S(?:\S| (?! |\())*) (\(\d+,(?: \d+)?\))")


def read(text: str) -> tuple[dict[tuple[str, ...], list[list[str]]], list[str]]:
    """The arrays in the text, by (step, layer, name), as written, and the lines that are no part of an array."""
    arrays: dict[tuple[str, ...], list[list[str]]] = {}
    others, step, layer = [], "", ""
    columns: list[tuple[int, tuple[str, ...]]] = []
    for line in text.splitlines():
        titles = list(TITLE.finditer(line)) if line.startswith("    ") else []
        if titles and ":" not in line:
            columns = [(match.start(), (step, layer, match[1])) for match in titles]
            for _, key in columns:
                assert key not in arrays
                arrays[key] = []
        elif columns and line.startswith("    "):
            ends = [start for start, _ in columns[1:]] + [len(line)]
            for (start, key), end in zip(columns, ends, strict=True):
                if line[start:end].strip():
                    arrays[key].append(line[start:end].split())
        else:
            columns = []
            others += [line] if line else []
            if re.match(r"\d\. ", line):
                step, layer = line[0], ""
            layer = line.split("'")[1] if line.startswith("  layer") else layer
    return arrays, others


def written(numbers: Any) -> list[list[str]]:
    rows = numbers if isinstance(numbers[0], list) else [numbers]
    return [["0" if x == 0 else f"{x:.4g}" for x in row] for row in rows]


def test_every_number_of_xor_is_the_hand_s() -> None:
    model = xor_net()
    arrays, others = read(str(xor_trace(model)))
    *layers, whole = hand_numbers(model)
    forward = {"input a": "inputs", "w": "weight_before", "b": "bias_before", "z": "z", "a": "a"}
    error = {"dC/da": "cost_gradient", "sigma'(z)": "derivative", "delta": "delta"}
    gradient = {"dC/dw": "grad_weight", "dC/db": "grad_bias"}
    update = {"w": "weight_before", "w after": "weight_after", "b": "bias_before", "b after": "bias_after"}
    expected = {("2", "", "y"): Y, ("2", "", "a"): layers[1]["a"]}
    expected |= {("2", "", name): layers[1][field] for name, field in error.items()}
    expected |= {("3", "0", name): layers[0][field] for name, field in error.items()}
    for number, layer in enumerate(layers):
        for step, fields in (("1", forward), ("3", gradient), ("4", update | gradient)):
            expected |= {(step, str(number), name): layer[field] for name, field in fields.items()}
    assert arrays == {key: written(numbers) for key, numbers in expected.items()}
    assert others == [
        "One training step of GradientDescent(lr=0.5). Examples are rows.",
        "1. FORWARD",
        "   z = w a + b with the a of the layer below;  a = sigma(z)",
        "  layer 1 named '0': 2 -> 3, sigmoid",
        "  layer 2 named '1': 3 -> 1, sigmoid",
        "2. LOSS AND OUTPUT ERROR",
        "   delta = dC/da * sigma'(z)",
        f"  C = {whole['loss']:.4g}  (QuadraticLoss)",
        "  dC/da = (a - y) / r,  r = 4",
        "3. BACKPROPAGATED ERROR AND GRADIENTS",
        "   delta = (w^T delta of the layer above) * sigma'(z)",
        "   dC/dw = delta a^T,  dC/db = delta, summed over the examples",
        "  layer 2 named '1'",
        "  layer 1 named '0'",
        "4. UPDATE",
        "   w := w - eta dC/dw,  b := b - eta dC/db,  eta = 0.5",
        "  layer 1 named '0'",
        "  layer 2 named '1'",
    ]


def test_large_arrays_are_summed_up() -> None:
    model = mg.MLP([64, 30, 10], "relu")
    with torch.no_grad():
        model[0].weight[:3] = 0
        model[0].bias[:3] = -1
    trace = mg.trace(model, mg.SoftmaxCrossEntropyLoss(), torch.rand(32, 64), torch.randint(10, (32,)))
    text, layer = plain(trace, 200), trace.layers[0]
    zero, dead = (100 * which.double().mean() for which in (layer.a == 0, (layer.a == 0).all(0)))
    assert 0 < dead < zero
    assert (
        f"    w (30, 64): norm {layer.weight_before.double().norm():.4g}, mean {layer.weight_before.double().mean():.4g}, 10 % zero"
        in text
    )
    assert (
        f"    a (32, 30): norm {layer.a.double().norm():.4g}, mean {layer.a.double().mean():.4g}, "
        f"{zero:.3g} % zero, {dead:.3g} % of the units dead (sigma'(z) is 0 for the whole batch)\n"
    ) in text
    assert len(text.splitlines()) < 70


def test_saturated_entries_are_counted_as_the_monitor_counts() -> None:
    model = mg.MLP([1, 20, 1], "sigmoid")
    with torch.no_grad():
        model[0].weight.zero_(), model[0].bias.zero_()
        model[0].bias[:3] = torch.tensor([4.58, 4.59, -9.0])  # sigma' is 0.01005, 0.00995 and 0.0001
    text = plain(mg.trace(model, mg.QuadraticLoss(), torch.zeros(2, 1), torch.zeros(2, 1)), 200)
    assert "0 % zero, 10 % saturated (|sigma'(z)| below 0.01)\n" in text


def test_of_an_activation_that_is_no_longer_known_nothing_is_said() -> None:
    model = mg.MLP([1, 20, 1], "tanh")
    trace = mg.trace(model, mg.QuadraticLoss(), torch.ones(2, 1), torch.zeros(2, 1))
    elsewhere = replace(
        trace, layers=(replace(trace.layers[0], activation="defined in another process"), trace.layers[1])
    )
    assert "saturated" in str(trace) and "saturated" not in str(elsewhere)


class Branched(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.twice, self.last = mg.Dense(3, 4, activation="tanh"), mg.Dense(4, 4), mg.Dense(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return 2 * self.last(self.twice(self.twice(self.first(x))).sin())


def test_what_does_not_follow_the_text_is_said() -> None:
    model = Branched()
    model.last.requires_grad_(False)
    text = plain(mg.trace(model, nn.MSELoss(), X, torch.zeros(8, 2), torch.optim.Adam(model.parameters())), 100)
    for line in (
        "  layer 1 named 'first': 3 -> 4, tanh\n",
        "  layer 3 named 'twice', call 2: 4 -> 4, identity\n",
        "  layer 4 named 'last': 4 -> 2, identity; its input is not the a of the layer before\n",
        "    y (8, 2)    outputs (8, 2)",
        "  layer 3 named 'twice', call 2: dC/da has come through more than the layer above\n",
        "  layer 2 named 'twice'\n",
        "   w and b := what Adam(lr=0.001) makes of dC/dw and dC/db\n",
        "  layer 2 named 'twice': dC/dw and dC/db are sums over its 2 calls\n",
        "  layer 4 named 'last': w stays (frozen, not the optimizer's, or without a gradient)\n",
    ):
        assert line in text


def cases() -> Iterator[tuple[str, mg.Trace]]:
    loss = mg.QuadraticLoss()
    yield "bare layer", mg.trace(mg.Dense(3, 2, bias=False), loss, X, torch.zeros(8, 2))
    yield "one example", mg.trace(mg.MLP([3, 2]), loss, X[0], torch.zeros(2))
    yield "no example", mg.trace(mg.MLP([3, 2]), lambda a, y: a.sum(), X[:0], torch.zeros(0, 2))
    yield "not finite", mg.trace(mg.MLP([3, 20, 2]), loss, X / 0, torch.zeros(8, 2))
    yield "bfloat16", mg.trace(mg.MLP([3, 2], dtype=torch.bfloat16), loss, X.bfloat16(), torch.zeros(8, 2).bfloat16())
    complex_net = mg.MLP([3, 4, 2], "tanh", dtype=torch.complex64)
    yield "complex", mg.trace(complex_net, lambda a, y: (a - y).abs().mean(), X.to(torch.complex64), torch.zeros(8, 2))


@pytest.mark.parametrize("case", range(6))
def test_anything_prints(case: int) -> None:
    name, trace = list(cases())[case]
    text = str(trace)
    assert "4. UPDATE" in text
    said = {"bare layer": "the model itself", "no example": "z (0, 2): empty", "not finite": "160 of 160 not finite"}
    assert said.get(name, "") in text


def rich_text(trace: mg.Trace, width: int, **options: Any) -> str:
    console = Console(width=width, file=StringIO(), **options)
    console.print(trace)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_rich_prints_the_same() -> None:
    trace = xor_trace(xor_net())
    assert rich_text(trace, 80).split() == str(trace).split()


def digits_trace(names: Sequence[str] = ("0", "1")) -> mg.Trace:
    model = nn.Sequential()
    model.add_module(names[0], mg.Dense(64, 128, activation="relu"))
    model.add_module(names[1], mg.Dense(128, 10))
    return mg.trace(model, mg.SoftmaxCrossEntropyLoss(), torch.rand(32, 64), torch.arange(32) % 10)


def nine_pixels() -> mg.Trace:
    return mg.trace(mg.MLP([9, 3, 1], "sigmoid", "sigmoid"), mg.QuadraticLoss(), torch.rand(6, 9), torch.rand(6, 1))


@pytest.mark.parametrize("width", [60, 80])
@pytest.mark.parametrize(
    "trace",
    [nine_pixels, digits_trace, lambda: digits_trace(["l" * 60, "name with words " * 4])],
    ids=["9", "64", "names"],
)
def test_no_line_is_wider_than_the_terminal(
    trace: Callable[[], mg.Trace], width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    assert max(map(len, str(trace()).splitlines())) <= width
    monkeypatch.delenv("COLUMNS")
    assert max(map(len, str(trace()).splitlines())) <= 80


IN_A_TERMINAL = """
import fcntl, os, pty, struct, sys, termios
program, width = sys.argv[1:]
pid, end = pty.fork()
if pid == 0:
    os.execv(sys.executable, [sys.executable, "-c", program])
fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, int(width), 0, 0))
while True:
    try:
        piece = os.read(end, 4096)
    except OSError:
        break
    sys.stdout.buffer.write(piece)
    sys.stdout.flush()
"""
PRINT_NINE_PIXELS = """
import torch
import manualgrad as mg
model = mg.MLP([9, 3, 1], "sigmoid", "sigmoid")
print(mg.trace(model, mg.QuadraticLoss(), torch.rand(6, 9), torch.rand(6, 1)))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs pseudo-terminals")
@pytest.mark.parametrize("width", [60, 80])
def test_in_a_terminal_the_width_is_the_terminal_s(width: int) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    command = [sys.executable, "-c", IN_A_TERMINAL, PRINT_NINE_PIXELS, str(width)]
    text = subprocess.run(command, capture_output=True, text=True, env=environment, check=True, timeout=300).stdout
    assert "4. UPDATE" in text
    longest = max(map(len, text.splitlines()))
    assert width - 10 < longest <= width


def test_a_matrix_breaks_between_columns() -> None:
    trace = nine_pixels()
    text = plain(trace, 60)
    entries = [f"{x:.4g}" for x in trace.layers[0].weight_before.flatten().tolist()]
    rows = text[text.index("w (3, 9)") : text.index("b (3,)")].split("\n\n")
    assert [block.split("\n")[0].strip() for block in rows[:2]] == ["w (3, 9)", "w[:, 6:9]"]
    first, second = ([line.split() for line in block.split("\n")[1:4]] for block in rows[:2])
    assert [*map(len, first), *map(len, second)] == [6, 6, 6, 3, 3, 3]
    assert [x for left, right in zip(first, second, strict=True) for x in left + right] == entries


def test_cross_entropy_shows_p_and_one_hot_targets() -> None:
    classes = torch.tensor([0, 2, 1, 2])
    trace = mg.trace(mg.MLP([3, 4, 3], "tanh"), mg.SoftmaxCrossEntropyLoss(), X[:4], classes)
    arrays, others = read(str(trace))
    p = trace.outputs.double().softmax(1)
    y = nn.functional.one_hot(classes, 3)
    assert arrays["2", "", "y"] == written(y.tolist()) and arrays["2", "", "p"] == written(p.tolist())
    torch.testing.assert_close(trace.output_gradient.double(), (p - y) / 4, rtol=1e-6, atol=1e-8)
    assert "  dC/da = (p - y) / r,  r = 4,  p = softmax(a)" in others
    assert "  y has a 1 at the class of each example" in others


def test_class_labels_are_counted_and_not_summed_up() -> None:
    text = str(digits_trace())
    assert "    y (32, 10): one-hot; examples of each class: 4 4 3 3 3 3 3 3 3 3\n" in text
    assert "y (32,)" not in text


def test_images_are_drawn_side_by_side() -> None:
    images = torch.tensor([[[0.0, 1.0], [0.5, 0.25]], [[1.0, 1.0], [0.0, 0.75]]])
    assert images_as_text(images, ["0", "1"]).splitlines() == [
        "    0       1",
        "    ··██    ████",
        "    ▒▒░░    ··▓▓",
    ]


def test_names_do_not_reach_the_terminal_as_they_are() -> None:
    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs.sum()

    loss.__name__ = "\x1b[2J\r\u202eevil"
    model = nn.Sequential()
    model.add_module("\x1b[31m\u202e" + "n" * 4000, mg.Dense(3, 2))
    trace = mg.trace(model, loss, X, torch.zeros(8, 2))
    for text in (str(trace), rich_text(trace, 80), repr(trace), repr(trace.layers[0])):
        assert not any(c in text for c in "\x1b\r\u202e") and "n" * 200 not in text
    assert "(\\x1b[2J\\r\\u202eevil)" in str(trace) and "'\\x1b[31m\\u202ennn" in str(trace)


@pytest.mark.parametrize("width", [40, 60, 80])
def test_a_narrow_terminal_loses_nothing(width: int) -> None:
    trace = xor_trace(xor_net())
    text = rich_text(trace, width)
    assert sorted(text.split()) == sorted(str(trace).split())
    assert max(map(len, text.splitlines())) <= width


def test_colours_only_where_rich_writes_to_a_terminal() -> None:
    model = nn.Sequential()
    model.add_module("[red]", mg.Dense(3, 2))  # a name that is markup to rich
    trace = mg.trace(model, nn.MSELoss(), X, torch.zeros(8, 2))
    assert "\x1b[" in rich_text(trace, 100, force_terminal=True, color_system="standard")
    assert "layer 1 named '[red]'" in rich_text(trace, 100) and "\x1b[" not in str(trace)
