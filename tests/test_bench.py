"""`manualgrad bench` runs, and its report holds what it says."""

import json
from pathlib import Path

from manualgrad.bench.command import main


def test_a_quick_run_writes_json_and_a_plot(tmp_path: Path) -> None:
    assert main(["--quick", "--out", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "bench.json").read_text())
    assert report["nets"]
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")
