"""Every code block of README.md does what the README says.

Python blocks run in order, in one namespace, as a reader would type them. What a block prints must be what stands in the
comments behind its prints, or in the `text` block that follows it. Commands run as written, in a temporary directory, except
`manualgrad fit` without options, which is cut to one epoch here, and installing and running the tests themselves, which
`.ci/run` does from this same text in a fresh environment.
"""

import io
import os
import re
import shlex
import subprocess
import sys
from contextlib import redirect_stdout
from importlib.metadata import requires, version
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from manualgrad import equations
from tests.printed import assert_printed


ROOT = Path(__file__).parents[1]
LINES = (ROOT / "README.md").read_text().splitlines()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", "\n".join(LINES), flags=re.MULTILINE | re.DOTALL)
COMMANDS = [line for kind, block in BLOCKS if kind == "sh" for line in block.splitlines()]
INSTALL = re.compile(r'python -m pip install -c (\S+) -e "\.\[(\w+)\]" && (.*)')


def printed_comments(block: str) -> str:
    return "\n".join(re.findall(r"^ *print\(.*\)  # (.*)$", block, flags=re.MULTILINE))


def test_python_blocks_print_what_stands_beside_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {}
    following = [*BLOCKS[1:], ("", "")]
    for (kind, block), (next_kind, next_block) in zip(BLOCKS, following, strict=True):
        if kind != "python":
            continue
        with redirect_stdout(io.StringIO()) as output:
            exec(compile(block, "README.md", "exec"), namespace)
        if "print(" in block:
            assert_printed(output.getvalue(), next_block if next_kind == "text" else printed_comments(block))


def test_the_equations_are_those_of_the_code() -> None:
    kind, block = BLOCKS[0]
    assert kind == "text"
    assert block in re.sub(r"^ {4}", "", equations.__doc__ or "", flags=re.MULTILINE)


def test_every_block_is_of_a_kind_that_is_tested() -> None:
    fences = sum(line.startswith("```") for line in LINES)
    assert fences == 2 * len(BLOCKS)
    kinds = [kind for kind, _ in BLOCKS]
    assert set(kinds) == {"python", "sh", "text"}
    assert all(kinds[i - 1] == "python" for i, kind in enumerate(kinds) if kind == "text" and i > 0)


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)]+)\)", "\n".join(LINES))
    assert links and all((ROOT / link).exists() for link in links)


def test_is_short_with_code_near_the_top() -> None:
    assert len(LINES) <= 220
    assert LINES.index("```python") + 1 < 35


def test_commands_run(tmp_path: Path) -> None:
    script = [
        "from manualgrad.cli.main import main"
    ]  # one interpreter for all: most of each command's time is importing
    for command in COMMANDS:
        installed = INSTALL.match(command)
        name, *arguments = shlex.split(installed[3] if installed else command, comments=True)
        if name != "python":
            assert name == "manualgrad", command
            script.append(f"assert not main({arguments + ['--trainer.max_epochs', '1'] * (arguments == ['fit'])})")
    run = subprocess.run(
        [sys.executable, "-c", "\n".join(script)],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    assert not re.search("warning", run.stderr, re.IGNORECASE), run.stderr


@pytest.mark.parametrize("command", [c for c in COMMANDS if INSTALL.match(c)])
def test_what_is_installed_is_pinned_to_versions_that_fit(command: str) -> None:
    match = INSTALL.fullmatch(command)
    assert match is not None
    constraints, extra, _ = match.groups()
    pins = dict(line.split("==") for line in (ROOT / constraints).read_text().split() if "==" in line)
    for requirement in map(Requirement, requires("manualgrad") or []):
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            if requirement.name != "manualgrad":
                assert requirement.specifier.contains(pins[requirement.name]), requirement


def test_the_pins_are_the_versions_under_test() -> None:
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line)
    assert version("torch").split("+")[0] == pins["torch"]
