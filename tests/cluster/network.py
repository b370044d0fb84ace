"""Hosts of a cluster as network namespaces, each with an address and a cable of its own.

They live in namespaces of this program, which the kernel removes when the last program in them has
ended: see `enter`.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

_SUBNET = "10.77.0"

OWN_ADDRESS = f"{_SUBNET}.254"
"""Address of this program, on the switch that connects the hosts."""

_INSIDE = "STREAMER_TEST_CLUSTER"
"""Environment variable that says that this program runs in namespaces of its own."""

_SLOW = ("netem delay 150ms 50ms loss 3% rate 4mbit", "tbf rate 1mbit burst 32kb latency 400ms")
"""What makes a cable slow: the first that the kernel knows is used."""


def what_is_missing() -> str | None:
    """Return why no hosts can be made here, as a sentence; None if they can."""
    if os.geteuid() != 0:
        return "Network namespaces take root."
    for name in ("unshare", "nsenter", "ip", "tc", "setpriv", "mount"):
        if shutil.which(name) is None:
            return f"The program '{name}' is not installed: install iproute2 and util-linux."
    tried = subprocess.run(["unshare", "-n", "-m", "true"], capture_output=True, text=True)
    if tried.returncode:
        return f"This machine makes no namespaces: {tried.stderr.strip()}."
    return None


def enter(module: str, arguments: Sequence[str]) -> int | None:
    """Run a module in namespaces of its own; return its exit code, or None if this is it."""
    if os.environ.get(_INSIDE):
        return None
    command = ["unshare", "-n", "-m", "--", sys.executable, "-m", module, *arguments]
    return subprocess.run(command, env=os.environ | {_INSIDE: "1"}).returncode


class Host:
    """A host: programs on it are started by what `command` returns.

    Attributes:
        name: short, unique.
        address: its IPv4 address.
    """

    def __init__(self, name: str, number: int) -> None:
        self.name = name
        self.address = f"{_SUBNET}.{number}"
        self._cable = f"to-{name}"
        _ip(f"netns add {name}")
        _ip(f"link add {self._cable} type veth peer name eth0 netns {name}")
        _ip(f"link set {self._cable} master switch up")
        _ip(f"-n {name} addr add {self.address}/24 dev eth0")
        for link in ("lo", "eth0"):
            _ip(f"-n {name} link set {link} up")

    def command(self, argv: Sequence[str | Path]) -> list[str | Path]:
        """Return the command that runs `argv` on this host."""
        return ["nsenter", f"--net=/run/netns/{self.name}", *argv]

    def cut(self) -> None:
        """Pull the cable: nothing passes, and no end of a connection notices."""
        _ip(f"link set {self._cable} down")

    def slow_down(self) -> None:
        """Make the cable slow, in both directions."""
        ends = (["tc"], self._cable), (["tc", "-n", self.name], "eth0")
        for tc, end in ends:
            for kind in _SLOW:
                command = [*tc, "qdisc", "replace", "dev", end, "root", *kind.split()]
                if subprocess.run(command, capture_output=True).returncode == 0:
                    break
            else:
                raise RuntimeError("the kernel knows neither netem nor tbf")

    def mend(self) -> None:
        """Make the cable as good as new."""
        _ip(f"link set {self._cable} up")
        for tc, end in ((["tc"], self._cable), (["tc", "-n", self.name], "eth0")):
            # There is nothing to delete if it was not slow.
            subprocess.run([*tc, "qdisc", "del", "dev", end, "root"], capture_output=True)


def make_switch() -> None:
    """Connect the hosts to come with each other and with this program."""
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/run/netns"], check=True)
    for command in (
        "link set lo up",
        "link add switch type bridge",
        f"addr add {OWN_ADDRESS}/24 dev switch",
        "link set switch up",
    ):
        _ip(command)


def mount_disk(folder: Path, megabytes: int) -> None:
    """Mount a small disk of its own at `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    options = f"size={megabytes}m"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True)


def _ip(command: str) -> None:
    subprocess.run(["ip", *command.split()], check=True, capture_output=True)
