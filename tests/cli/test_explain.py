"""`manualgrad explain` as a user calls it."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from manualgrad.cli.main import main
from manualgrad.lightning import BackpropModule
from tests.cli.command_runs import manualgrad
from tests.lightning.runs import fitted


@pytest.fixture(autouse=True)
def in_its_own_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def printed(capsys, *arguments):
    assert main(["explain", *arguments]) == 0
    return capsys.readouterr().out


def test_out_of_the_box_every_number_of_a_step_on_six_images(capsys):
    text = printed(capsys)
    for line in (
        "The data: 6 images of the handwritten digits 0 to 1 from scikit-learn, 8 x 8\npixels averaged to 3 x 3.\n",
        "    0         1         0         1         0         1\n    ░░▒▒░░    ··▒▒░░    ",
        "One training step of GradientDescent(lr=10). Examples are rows.\n",
        "  layer 1 named '0': 9 -> 3, sigmoid\n",
        "  layer 2 named '1': 3 -> 1, sigmoid\n",
        "  C = 0.1284  (QuadraticLoss)\n",
        "   w := w - eta dC/dw,  b := b - eta dC/db,  eta = 10\n",
    ):
        assert line in text
    assert "norm" not in text  # nothing had to be summed up
    assert printed(capsys) == text and printed(capsys, "--seed", "1") != text


@pytest.mark.parametrize("seed", ["0", "1", "2"])
def test_the_steps_are_consecutive_and_out_of_the_box_it_learns(capsys, seed):
    text = printed(capsys, "--steps", "50", "--seed", seed)
    assert max(map(len, text.splitlines())) <= 80
    first, *_ = text.partition(".\nThe last of them:\n")
    costs = [float(cost) for cost in first.replace("\n", " ").removeprefix("C in 50 steps: ").split(", ")]
    assert len(costs) == 50 and costs[-1] < 0.3 * costs[0] and f"  C = {costs[-1]:.4g}  (QuadraticLoss)" in text


@pytest.mark.parametrize(
    ("arguments", "lr"),
    [(["--activation", "relu"], 1), (["--loss", "binary_cross_entropy"], 1), (["--lr", "0.5"], 0.5)],
)
def test_only_the_quadratic_loss_on_sigmoids_takes_large_steps(capsys, arguments, lr):
    assert f"One training step of GradientDescent(lr={lr}). " in printed(capsys, *arguments)


@pytest.mark.parametrize("loss", ["cross_entropy", "binary_cross_entropy", "quadratic"])
def test_ten_digits_with_any_loss(capsys, loss):
    text = printed(
        capsys, "--layer-sizes", "64", "30", "10", "--activation", "relu", "--loss", loss, "--examples", "12"
    )
    assert "layer 1 named '0': 64 -> 30, relu\n" in text and "a (12, 30): norm" in text
    assert f"({loss.replace('_', ' ').title().replace(' ', '')}Loss)".replace("(Cross", "(SoftmaxCross") in text


def test_a_page_of_several_steps_and_a_plot(capsys):
    text = printed(capsys, "--steps", "3", "--out", "page.html", "--plot", "plot.png")
    assert text == "Written: plot.png\nWritten: page.html\n"
    assert Path("page.html").read_text().lstrip().lower().startswith("<!doctype html>")
    assert Path("plot.png").read_bytes().startswith(b"\x89PNG")


def test_the_net_in_a_checkpoint(tmp_path, capsys):
    module: Any = fitted(tmp_path)
    module.trainer.save_checkpoint("net.ckpt")
    capsys.readouterr()
    text = printed(capsys, "--checkpoint", "net.ckpt", "--examples", "10")
    assert "layer 1 named '0': 64 -> 16, relu\n" in text and "(SoftmaxCrossEntropyLoss)" in text
    assert {f"{x:.4g}" for x in module.model[1].bias.tolist()} <= {
        *text.split()
    }  # the trained one, in blocks of columns


def test_open_shows_the_page_in_the_browser(tmp_path):
    browser = tmp_path / "browser"
    browser.write_text('#!/bin/sh\necho "$1" > opened\n')
    browser.chmod(0o755)
    start = f"import os, sys; os.environ['BROWSER'] = '{browser} %s'; from manualgrad.cli.main import main; sys.exit(main())"
    run = manualgrad(tmp_path, "explain", "--open", python=(sys.executable, "-W", "error", "-c", start))
    assert run.returncode == 0, run.stderr
    page = re.fullmatch(r"Written: (\S+/explain\.html)\n", run.stdout)
    assert page is not None and Path(page[1]).stat().st_size > 10_000
    assert (tmp_path / "opened").read_text() == f"file://{page[1]}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--layer-sizes", "10", "1"],
            "Expected the net to take a square of pixels, 1, 4, 9, ... or 64, got 10 features in. "
            "Make the first layer size one of these, for example 9.",
        ),
        (
            ["--layer-sizes", "9"],
            "MLP expected `sizes` to have at least two entries, features in and features out, got [9]. "
            "Pass for example sizes=[784, 30, 10].",
        ),
        (
            ["--loss", "cross_entropy"],
            "Expected at least two features out for the cross-entropy, got 1. Make the last layer size 2 or more.",
        ),
        (["--lr", "-1"], "Invalid learning rate: -1.0. Expected a finite number >= 0, for example lr=0.1."),
        (["--steps", "0"], "Expected --steps to be at least 1, got 0. Pass for example --steps 10."),
        (
            ["--out", "nowhere/page.html"],
            "Expected --out to be a file in a folder that exists, got nowhere/page.html. Make nowhere first.",
        ),
        (
            ["--plot", "nowhere/plot.png"],
            "Expected --plot to be a file in a folder that exists, got nowhere/plot.png. Make nowhere first.",
        ),
        (["--out", "."], "Expected --out to be a file, got ., which is a folder. Name a file in it."),
        (
            ["--out", "step.svg", "--plot", "./step.svg"],
            "Expected --out and --plot to be two files, got step.svg for both. Rename one of them.",
        ),
        (
            ["--seed", str(2**64)],
            f"Expected --seed to fit 64 bits, got {2**64}. Pass for example --seed 0.",
        ),
        (
            ["--plot", "plot.xyz"],
            "Expected --plot to end in a format that matplotlib writes, such as .png, .svg or .pdf, got plot.xyz.",
        ),
        (
            ["--checkpoint", "net.ckpt", "--loss", "quadratic", "--activation", "relu"],
            "Expected either --checkpoint or --activation and --loss, got both. The checkpoint says what its net is: leave "
            "--activation and --loss out.",
        ),
        (
            ["--checkpoint", "nowhere.ckpt"],
            "Expected the path of a checkpoint, got 'nowhere.ckpt', which is no file. Pass one that `manualgrad fit` has "
            "written, for example lightning_logs/version_0/checkpoints/last.ckpt.",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_done_is_one_sentence(capsys, arguments, message):
    assert main(["explain", *arguments]) == 1
    assert capsys.readouterr().err == f"manualgrad: error: {message}\n"
    assert list(Path().iterdir()) == []


def test_an_unknown_option_is_named(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["explain", "--loss", "huber"])
    assert stop.value.code == 2
    assert "argument --loss: invalid choice: 'huber'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("package", "arguments", "purpose"),
    [
        ("scikit-learn", [], "manualgrad explain"),
        ("matplotlib", ["--plot", "plot.png"], "manualgrad explain --plot"),
        ("jinja2", ["--out", "page.html"], "manualgrad explain --out"),
        ("lightning", ["--checkpoint", "net.ckpt"], "manualgrad explain --checkpoint"),
    ],
)
def test_a_missing_package_is_named_with_the_pip_command(monkeypatch, capsys, package, arguments, purpose):
    monkeypatch.setitem(
        sys.modules, package.replace("scikit-learn", "sklearn"), None
    )  # how Python marks a module that cannot be imported
    assert main(["explain", *arguments]) == 1
    assert capsys.readouterr().err == (
        f"manualgrad: error: {purpose} expected the package `{package}`, which is not installed. "
        'Install it with: python -m pip install "manualgrad[demo]", '
        'or in a clone: python -m pip install -c constraints.txt -e ".[demo]"\n'
    )


def test_a_checkpoint_of_another_module_says_how_to_trace_it(tmp_path, capsys):
    class Other(BackpropModule):
        pass

    module = fitted(tmp_path, Other(sizes=(64, 16, 10)), limit_train_batches=1, max_epochs=1)
    checkpoint = tmp_path / "other.ckpt"
    module.trainer.save_checkpoint(checkpoint)
    content = torch.load(checkpoint, weights_only=True)
    content["hyper_parameters"]["_class_path"] = "mine.Other"
    torch.save(content, checkpoint)
    assert main(["explain", "--checkpoint", str(checkpoint)]) == 1
    assert capsys.readouterr().err == (
        "manualgrad: error: Expected a checkpoint of a BackpropModule, got one of mine.Other. "
        "Load your module and call mg.trace(module, loss, inputs, targets).\n"
    )
