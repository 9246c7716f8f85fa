"""What `import manualgrad` brings along, seen from a fresh interpreter."""

import subprocess
import sys
from importlib.metadata import version

import manualgrad as mg


def test_import_brings_no_optional_package() -> None:
    program = (
        "import sys, torch; before = set(sys.modules)\n"  # torch itself may bring some, depending on what is installed
        "import manualgrad; from manualgrad import *\n"
        "print(sorted({name.partition('.')[0] for name in set(sys.modules) - before} & "
        "{'lightning', 'pytorch_lightning', 'torchmetrics', 'sklearn', 'matplotlib', 'rich', 'jinja2', 'jsonargparse', 'numpy'}))"
    )
    output = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=True)
    assert output.stdout.strip() == "[]"


def test_public_names() -> None:
    assert all(hasattr(mg, name) for name in mg.__all__)
    assert mg.__version__ == version("manualgrad")
