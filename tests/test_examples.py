"""Every example runs as its docstring says, without a warning, and prints the expected output that stands there."""

import ast
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.printed import assert_printed


EXAMPLES = Path(__file__).parents[1] / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*.py"))
NAMES = [script.name for script in SCRIPTS]


def docstring(script: Path) -> str:
    return ast.get_docstring(ast.parse(script.read_text())) or ""


@pytest.mark.parametrize("script", SCRIPTS, ids=NAMES)
def test_prints_the_expected_output(script: Path, tmp_path: Path) -> None:
    _, heading, expected = docstring(script).partition("Expected output:\n")
    assert heading, "The docstring ends with 'Expected output:' and an indented block."
    run = subprocess.run(
        [sys.executable, "-W", "error", str(script)],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    assert_printed(run.stdout, textwrap.dedent(expected))


@pytest.mark.parametrize("script", SCRIPTS, ids=NAMES)
def test_is_short_and_says_how_to_run_it(script: Path) -> None:
    assert len(script.read_text().splitlines()) < 80
    assert f"    python examples/{script.name}\n" in docstring(script)


def test_the_digits_pair_differs_in_imports_and_class_names_alone() -> None:
    by_autograd, by_hand = (
        [
            line
            for line in (EXAMPLES / name).read_text().splitlines()
            if line and not line.startswith(("import", "from"))
        ]
        for name in ("digits_autograd.py", "digits_manualgrad.py")
    )
    classes = {
        'Dense(64, HIDDEN, activation="sigmoid")': "Linear(64, HIDDEN), Sigmoid()",
        "Dense(HIDDEN, 10)": "Linear(HIDDEN, 10)",
        "SoftmaxCrossEntropyLoss()": "CrossEntropyLoss()",
        "GradientDescent(model": "SGD(model",
    }
    for ours, theirs in classes.items():
        assert sum(ours in line for line in by_hand) == 1
        by_hand = [line.replace(ours, theirs) for line in by_hand]
    assert by_hand == by_autograd
