"""What `import manualgrad` brings along, seen from a fresh interpreter."""

import pickle
import pydoc
import subprocess
import sys
from importlib.metadata import version
from typing import Any

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


def test_dir_lists_the_public_names_and_hides_the_files() -> None:
    assert [name for name in dir(mg) if not name.startswith("__")] == sorted(mg.__all__)
    assert {"__all__", "__doc__", "__name__", "__version__"} < set(dir(mg))
    rooms: Any = mg
    assert rooms.comparison.compare.compare is mg.compare  # the rooms are hidden, and still there
    assert pickle.loads(pickle.dumps(mg.Dense)) is mg.Dense
    help_page = pydoc.plain(pydoc.render_doc(mg))
    assert "check_backward" in help_page and "class Dense(" in help_page


def test_public_names() -> None:
    assert all(hasattr(mg, name) for name in mg.__all__)
    assert mg.__version__ == version("manualgrad")
