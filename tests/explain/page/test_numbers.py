"""Every number on the page of an XOR 2-3-1 net, against `by_hand`, which shares no line with the page or the package."""

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from manualgrad.explain.number_format import brief, displayed, intensity, typeset
from tests.by_hand import Network, sigma_prime
from tests.explain.explained import EITHER, ETA, XOR, data_of, written, xor_net, xor_traces


Matrix = list[list[float]]


def by_hand() -> dict[str, Matrix]:
    """Every quantity of the page by its name there, an example or a neuron in each row. delta has the 1/r of the mean cost."""
    layers: list[Any] = list(xor_net())
    weights, biases = [layer.weight.tolist() for layer in layers], [layer.bias.tolist() for layer in layers]
    network = Network(weights, biases)
    batch = list(zip(XOR.tolist(), EITHER.tolist(), strict=True))
    r = len(batch)
    q: dict[str, Matrix] = {name: [] for name in "a0 z1 a1 s1 g1 d1 z2 a2 s2 g2 d2 y".split()}
    for x, y in batch:
        zs, activations = network.forward(x)
        deltas = [[delta / r for delta in layer] for layer in network.backpropagate(x, y)]
        q["y"].append(y)
        q["a0"].append(x)
        for layer in (1, 2):
            q[f"z{layer}"].append(zs[layer - 1])
            q[f"a{layer}"].append(activations[layer])
            q[f"s{layer}"].append([sigma_prime(z) for z in zs[layer - 1]])
            q[f"d{layer}"].append(deltas[layer - 1])
        q["g2"].append([(a - t) / r for a, t in zip(activations[2], y, strict=True)])
        q["g1"].append([sum(weights[1][j][k] * deltas[1][j] for j in range(1)) for k in range(3)])
    for layer, below in ((1, "a0"), (2, "a1")):
        deltas, inputs = q[f"d{layer}"], q[below]
        q[f"u{layer}"] = [
            [sum(deltas[i][j] * inputs[i][k] for i in range(r)) for k in range(len(inputs[0]))]
            for j in range(len(deltas[0]))
        ]
        q[f"v{layer}"] = [[sum(deltas[i][j] for i in range(r)) for j in range(len(deltas[0]))]]
        q[f"w{layer}"] = [list(row) for row in weights[layer - 1]]
        q[f"b{layer}"] = [list(biases[layer - 1])]
    q["C"] = [[network.train_on(batch, ETA)]]
    q["eta"] = [[ETA]]
    q["N"] = q["r"] = q["r1"] = q["r2"] = [[r]]  # one output each
    for layer in (1, 2):
        q[f"W{layer}"] = network.weights[layer - 1]
        q[f"B{layer}"] = [network.biases[layer - 1]]
    return q


def as_displayed(q: dict[str, Matrix]) -> dict[str, list[list[str]]]:
    return {name: [[displayed(x) for x in row] for row in matrix] for name, matrix in q.items()}


class Entries(HTMLParser):
    """The text of every element with a key, with its classes and its colour, and what stands for the chosen neurons."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, str, str, str]] = []
        self._open: tuple[str, str, str] | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        if "data-k" in attributes:
            self._open = (attributes["data-k"], attributes.get("class", ""), attributes.get("style", ""))
            if tag in ("line", "circle", "rect"):
                self.handle_data("")

    def handle_data(self, data: str) -> None:
        if self._open:
            self.found.append((*self._open, data.strip()))
            self._open = None


def test_the_numbers_of_the_script(tmp_path: Path) -> None:
    numbers = data_of(written(tmp_path, xor_traces()))["numbers"]
    assert {name: steps[0] for name, steps in numbers.items()} == as_displayed(by_hand())


def test_every_number_in_the_text_the_equations_and_the_drawing(tmp_path: Path) -> None:
    path = written(tmp_path, xor_traces())
    q = by_hand()
    scales = {name: max(abs(x) for row in matrix for x in row) for name, matrix in q.items()}
    for before, after in (("w1", "W1"), ("w2", "W2"), ("b1", "B1"), ("b2", "B2")):
        scales[before] = scales[after] = max(scales[before], scales[after])
    entries = Entries(path.read_text(encoding="utf-8")).found
    seen = set()
    for key, classes, style, text in entries:
        name, *place = key.split(":")
        i, j = (0 if part in "*@%" else int(part) for part in place)
        number = displayed(q[name][i][j])
        if text:
            shown = brief(number) if "brief" in classes else typeset(number)
            assert text in (shown, f"({shown})"), key
            seen.add(name)
        if style:
            v = intensity(float(number), scales[name])
            assert v is not None and float(style.removeprefix("--v:")) == pytest.approx(v, abs=1e-3), key
    assert seen == set(q) - {"N"}  # of all that the script has, only N is in no formula of this loss
    assert len(entries) > 500


def test_a_run_shows_each_training_step(tmp_path: Path) -> None:
    """The step after w := w - eta dC/dw begins with the weights that the step before ended with, to the last digit shown."""
    path = written(tmp_path, xor_traces(4))
    numbers = data_of(path)["numbers"]
    assert numbers["w1"][0] == as_displayed(by_hand())["w1"]
    for term in ("1", "2"):
        assert numbers[f"w{term}"][1:] == numbers[f"W{term}"][:-1]
        assert numbers[f"b{term}"][1:] == numbers[f"B{term}"][:-1]
