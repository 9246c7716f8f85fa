"""`manualgrad bench` runs, and its report holds what it says."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from manualgrad.bench.report import plot
from manualgrad.cli.bench import main
from tests.cli.command_runs import manualgrad


def test_a_quick_run_writes_json_and_a_plot_and_says_what_it_is(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["--quick", "--out", str(tmp_path)]) == 0
    printed = " ".join(capsys.readouterr().out.split())  # a narrow table breaks its title
    report = json.loads((tmp_path / "bench.json").read_text())
    assert report["nets"] and report["quick"]
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")
    assert printed.count("quick: a check that it runs, not a measurement") == printed.count("192-192-10 relu: ")


def memory(*mebibytes: float) -> dict[str, Any]:
    rows = [{"batch": 8 * 2**i, "bytes": {"manualgrad": size * 2**20}} for i, size in enumerate(mebibytes)]
    return {"name": "4-3 relu", "limit": 2.0, "results": [], "memory": rows}


@pytest.mark.parametrize("sizes", [(1.46, 1.9), (0.02, 3, 700), (2, 2)])
def test_the_memory_axis_has_plain_numbers(tmp_path: Path, sizes: tuple[float, ...]) -> None:
    plot({"nets": [memory(*sizes)], "quick": True}, tmp_path / "bench.svg")
    drawn = (tmp_path / "bench.svg").read_text()
    labels = re.findall(r"<!-- (.*) -->", drawn)  # matplotlib's note of each text
    assert "quick: a check that it runs, not a measurement" in labels
    of_memory = labels[labels.index("4-3 relu: speed") : labels.index("4-3 relu: memory")]
    assert len([label for label in of_memory if re.fullmatch(r"\d+(\.\d+)?", label)]) >= 2
    assert not any("10^{" in label for label in of_memory)


def test_train_step_is_measured_beside_rivals_that_reach_the_same_weights(tmp_path: Path) -> None:
    # In a process of its own: JAX, where it is installed, leaves threads behind that forbid a fork for good.
    ended = manualgrad(
        tmp_path, "bench", "--train-step", "--quick", "--no-compile", "--seconds", "0.1", "--json", "a.json"
    )
    assert ended.returncode == 0, ended.stderr
    (result,) = json.loads((tmp_path / "a.json").read_text())
    assert result["net"] == "784-30-10 sigmoid, batch 10" and result["threads"] == 1
    names = list(result["seconds"])
    assert names[:2] == ["TrainStep", "SGD loop"] and "scikit-learn" in names
    assert list(result["weights_apart"]) == names
    assert all(difference < 0.01 for difference in result["weights_apart"].values())
    assert "x the best autograd + SGD" in ended.stdout
