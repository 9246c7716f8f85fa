"""A real link of a given speed on one machine: each process in a network namespace of its own, joined by a switch.

The namespaces have no names: they live as long as the processes in them. What holds one open ends when this process ends,
whatever ends it, and the kernel then takes the namespace with its devices away. The machine's own network is never touched.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager


INTERFACE = "eth0"  # of each process
TOOLS = ("ip", "tc", "unshare", "nsenter", "sh", "cat")
_UNITS = {"k": 1e3, "m": 1e6, "g": 1e9}


def bytes_a_second(rate: str) -> float:
    """Of a rate as `tc` writes it, such as 1gbit.

    Raises:
        ValueError: it is not one.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kmg])bit", rate)
    if match is None or float(match[1]) == 0:
        raise ValueError(f"Expected the speed of a link, such as 1gbit or 100mbit, got {rate!r}.")
    return float(match[1]) * _UNITS[match[2]] / 8


@contextmanager
def shaped_link(processes: int, rate: str) -> Iterator[list[list[str]]]:
    """For each process the beginning of a command that runs in its namespace, from which `rate` can be sent at most.

    Raises:
        ValueError: not a rate.
        RuntimeError: this is not root on Linux, a tool is missing, or the kernel refuses; with what it said.
    """
    speed = bytes_a_second(rate)
    _check_possible()
    holders: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(processes + 1):
            holders.append(_namespace())
        hub, *stations = holders
        _inside(hub, "ip link add switch type bridge", "ip link set switch up")
        burst = max(131072, int(speed / 1000))  # bytes: what a millisecond carries, and no less than a large packet
        for k, station in enumerate(stations):
            _inside(
                hub,
                f"ip link add port{k} type veth peer name {INTERFACE} netns {station.pid}",
                f"ip link set port{k} master switch up",
            )
            _inside(
                station,
                f"ip address add 10.0.0.{k + 1}/24 dev {INTERFACE}",
                f"ip link set {INTERFACE} up",
                "ip link set lo up",
                f"tc qdisc add dev {INTERFACE} root tbf rate {rate} burst {burst} latency 50ms",
            )
        yield [_enter(station) for station in stations]
    finally:
        for holder in holders:
            holder.kill()
            holder.communicate()


def _check_possible() -> None:
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if not sys.platform.startswith("linux"):
        got = sys.platform
    elif os.geteuid() != 0:
        got = f"the user {os.geteuid()}"
    elif missing:
        got = f"a machine without {', '.join(missing)} (Debian: apt-get install iproute2 util-linux)"
    else:
        return
    raise RuntimeError(f"A shaped link expected root on Linux, got {got}. Leave out --link to measure on loopback.")


def _namespace() -> subprocess.Popen[bytes]:
    """A process in a new network namespace, which ends when its standard input does: with this process at the latest."""
    command = ["unshare", "--net", "sh", "-c", "echo && exec cat"]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert holder.stdout is not None
    if not holder.stdout.readline():
        _refused(" ".join(command), holder.communicate()[1])
    return holder


def _enter(holder: subprocess.Popen[bytes]) -> list[str]:
    return ["nsenter", "--target", str(holder.pid), "--net"]


def _inside(holder: subprocess.Popen[bytes], *commands: str) -> None:
    for command in commands:
        done = subprocess.run([*_enter(holder), *command.split()], capture_output=True, check=False)
        if done.returncode != 0:
            _refused(command, done.stderr)


def _refused(command: str, said: bytes) -> None:
    raise RuntimeError(
        f"A shaped link expected the kernel to allow {command!r}, got: {said.decode().strip()}. "
        "Leave out --link to measure on loopback."
    )
