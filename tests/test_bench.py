"""`manualgrad bench` runs, and its report holds what it says."""

import json
from pathlib import Path

from command_runs import manualgrad

from manualgrad.bench.command import main


def test_a_quick_run_writes_json_and_a_plot(tmp_path: Path) -> None:
    assert main(["--quick", "--out", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "bench.json").read_text())
    assert report["nets"]
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")


def test_train_step_is_measured_beside_rivals_that_reach_the_same_weights(tmp_path: Path) -> None:
    # In a process of its own: JAX, where it is installed, leaves threads behind that forbid a fork for good.
    ended = manualgrad(
        tmp_path, "bench", "--train-step", "--quick", "--no-compile", "--seconds", "0.1", "--json", "a.json"
    )
    assert ended.returncode == 0, ended.stderr
    (result,) = json.loads((tmp_path / "a.json").read_text())
    assert result["net"] == "784-30-10 sigmoid, batch 10" and result["threads"] == 1
    names = list(result["seconds"])
    assert names[:2] == ["TrainStep", "autograd + SGD (loop)"] and "scikit-learn" in names
    assert list(result["differences"]) == names
    assert all(difference < 0.01 for difference in result["differences"].values())
    assert "x the best autograd + SGD" in ended.stdout
