"""The command `manualgrad` in a process of its own, as a user starts it."""

import os
import subprocess
import sys


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120"}


def manualgrad(directory, *arguments, python=(sys.executable, "-W", "error", "-m", "manualgrad")):
    """`manualgrad ARGUMENTS` as a user types it; warnings are errors."""
    return subprocess.run(
        [*python, *arguments], cwd=directory, env=ENVIRONMENT, capture_output=True, text=True, timeout=120
    )
