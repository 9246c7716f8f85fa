"""`manualgrad bench --processes` runs, counts bytes, leaves nothing behind, and says what it cannot do."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch.distributed as dist

from manualgrad.bench.on_paper import break_even_rows, ddp_seconds, our_seconds
from manualgrad.bench.process_group import in_group
from manualgrad.bench.shaped_link import TOOLS, bytes_a_second, shaped_link
from manualgrad.cli.bench import main
from manualgrad.distributed.cost import Costs


needs_gloo = pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo")
LINUX = sys.platform.startswith("linux")
FOREVER = {"names": ["DDP"], "case": ["192-192-10 relu", 8], "seconds": 600}


def can_shape() -> bool:
    try:
        with shaped_link(1, "1gbit"):
            return True
    except RuntimeError:
        return False


def workers(of: int) -> list[int]:
    """The measuring processes that were started by that process."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int(re.search(r"PPid:\s+(\d+)", (entry / "status").read_text())[1])  # type: ignore[index]
            if parent == of and "manualgrad.bench.processes" in (entry / "cmdline").read_text():
                found.append(int(entry.name))
        except (FileNotFoundError, ProcessLookupError):
            pass
    return found


def soon(holds: Callable[[], bool], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.05)


def has_ended(pid: int) -> bool:
    try:
        return "State:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True


@needs_gloo
def test_bytes_are_counted_at_the_collectives(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    ways = ["exchange_factors", "always factors", "always gradients", "DDP", "DDP, bf16 hook"]
    options = ["--processes", "2", "--quick", "--json", str(tmp_path / "a.json"), "--ways", *ways]
    assert main(options) == 0
    (result,) = json.loads((tmp_path / "a.json").read_text())
    gradients = 4 * (192 * 192 + 192 + 10 * 192 + 10)
    assert result["bytes"]["DDP"] == gradients  # 2 (W - 1)/W of them, W = 2
    numbers = 2 * 7 * 8  # of the offers of two weights, but only one is large enough for factors
    assert result["bytes"]["always gradients"] == gradients + numbers // 2
    assert result["bytes"]["always factors"] == 4 * 8 * (192 + 192) + 4 * (192 + 10 * 192 + 10) + numbers // 2
    assert [result["factored"][name] for name in ways[1:4]] == [1, 0, 0]
    printed = capsys.readouterr().out
    assert "quick: a check that it runs, not a measurement" in printed
    assert "2 processes, loopback, 8 rows each" in printed and "x DDP  factors of 1 of 2 weights" in printed
    assert "DDP, bf16 hook was not measured: BF16 all reduce communication hook required" in printed
    assert re.search(r"^ +1024 +\d+\.\d +\d+$", printed, re.MULTILINE)


@needs_gloo
@pytest.mark.skipif(not LINUX, reason="looks into /proc")
def test_a_killed_process_ends_the_others_and_is_named() -> None:
    caught: list[Exception] = []

    def measure() -> None:
        try:
            in_group("times", 2, None, 1, **FOREVER)
        except RuntimeError as error:
            caught.append(error)

    thread = threading.Thread(target=measure)
    thread.start()
    soon(lambda: len(workers(os.getpid())) == 2)
    pids = sorted(workers(os.getpid()))
    os.kill(pids[1], signal.SIGKILL)
    thread.join(300)
    assert re.match(r"Measuring the times failed in process 1 with status -9:\n", str(caught[0]))
    assert all(has_ended(pid) for pid in pids)


@needs_gloo
@pytest.mark.skipif(not LINUX or not can_shape(), reason="needs root on Linux, iproute2 and util-linux")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_of_a_shaped_link_whatever_ends_the_command(how: signal.Signals, tmp_path: Path) -> None:
    before = subprocess.run(["ip", "-oneline", "link"], capture_output=True).stdout
    command = ["-m", "manualgrad", "bench", "--processes", "2", "--link", "1gbit", "--model", "192-192-10 relu"]
    command += ["--batch", "8", "--ways", "DDP", "--seconds", "600"]
    # Whoever runs the tests in the background may have them, and so their children, ignore SIGINT.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        bench = subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    finally:
        signal.signal(signal.SIGINT, handler)
    try:
        soon(lambda: len(workers(bench.pid)) == 2)
        pids = workers(bench.pid)
        inside = {os.readlink(f"/proc/{pid}/ns/net") for pid in pids}
        assert len(inside) == 2 and os.readlink("/proc/self/ns/net") not in inside
        bench.send_signal(how)
        bench.wait(300)
    finally:
        bench.kill()
        bench.wait()

    def nobody_is_there() -> bool:
        here = set()
        for entry in Path("/proc").glob("[0-9]*/ns/net"):
            try:
                here.add(os.readlink(entry))
            except (FileNotFoundError, ProcessLookupError):
                pass
        return not here & inside and all(has_ended(pid) for pid in pids)

    soon(nobody_is_there)
    assert subprocess.run(["ip", "-oneline", "link"], capture_output=True).stdout == before


@pytest.mark.parametrize("rate, speed", [("1gbit", 1.25e8), ("2.5mbit", 312500.0), ("8kbit", 1000.0)])
def test_rates(rate: str, speed: float) -> None:
    assert bytes_a_second(rate) == speed


@pytest.mark.parametrize("rate", ["fast", "0gbit", "1gbps", "1gbit; reboot", ""])
def test_what_is_no_rate(rate: str) -> None:
    with pytest.raises(ValueError) as error, shaped_link(2, rate):
        pass
    assert str(error.value) == f"Expected the speed of a link, such as 1gbit or 100mbit, got {rate!r}."


@pytest.mark.skipif(not LINUX or os.geteuid() != 0, reason="becomes another user")
def test_only_root_can_shape_a_link() -> None:
    code = "import os; from manualgrad.bench.shaped_link import shaped_link; os.seteuid(65534)\nshaped_link(2, '1gbit').__enter__()"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.stderr.splitlines()[-1] == (
        "RuntimeError: A shaped link expected root on Linux, got the user 65534. Leave out --link to measure on loopback."
    )


@pytest.mark.skipif(not LINUX or os.geteuid() != 0, reason="needs root on Linux")
def test_missing_tools_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError) as error, shaped_link(2, "1gbit"):
        pass
    assert str(error.value) == (
        f"A shaped link expected root on Linux, got a machine without {', '.join(TOOLS)} "
        "(Debian: apt-get install iproute2 util-linux). Leave out --link to measure on loopback."
    )


def test_what_cannot_be_measured_is_said(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        main(["--processes", "2", "--model", "mine:make"])
    assert "expected a net such as '1024-4096-4096-4096-1024 relu', got 'mine:make'." in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main(["--processes", "2", "--link", "fast"])
    assert str(ended.value) == (
        "manualgrad bench: error: Expected the speed of a link, such as 1gbit or 100mbit, got 'fast'."
    )


def test_break_even_on_paper() -> None:
    only_bytes = Costs(bandwidth=1.0, flops=float("inf"), update=float("inf"), gradient=float("inf"))
    # (W - 1) r (m + n) < 2 (W - 1)/W m n and W r (m + n) < m n, for m = n = 1024: W r < 512
    assert [break_even_rows(1024, 1024, world, only_bytes) for world in (2, 4, 1024)] == [255, 127, 0]
    only_update = Costs(bandwidth=float("inf"), flops=1.0, update=float("inf"), gradient=float("inf"))
    assert break_even_rows(1024, 1024, 2, only_update) == 0


def test_steps_on_paper() -> None:
    costs = Costs(bandwidth=4.0, flops=float("inf"), update=float("inf"), gradient=float("inf"))
    sizes, latency, common = [64, 128], 10.0, 5.0
    bucket = 2 * (4 - 1) * latency
    assert ddp_seconds(sizes, 2, 4, costs, latency, common) == 5 + bucket + 2 * 3 / 4 * 64 * 128
    assert our_seconds(sizes, 2, 4, costs, latency, common) == 5 + 2 * 3 * latency + bucket + 3 * 2 * (64 + 128)
    assert our_seconds(sizes, 64, 4, costs, latency, common) == 5 + 3 * latency + bucket + 2 * 3 / 4 * 64 * 128
