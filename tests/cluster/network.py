"""Hosts of a cluster as network namespaces, each with an address and a cable of its own.

They live in namespaces of this program, which end with it, and every program in them: see `enter`.
"""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

_SUBNET = "10.77.0"

OWN_ADDRESS = f"{_SUBNET}.254"
"""Address of this program, on the switch that connects the hosts."""

SCRATCH = Path("/run")
"""A disk in memory that ends with the namespaces."""

_INSIDE = "STREAMER_TEST_CLUSTER"
"""Environment variable that says that this program runs in namespaces of its own."""

_STOP_TIMEOUT = 60
"""Seconds after which everything in the namespaces is killed if it was asked to end."""

_DELAY, _SLOW = "netem delay 150ms 50ms rate 4mbit", "tbf rate 1mbit burst 32kb latency 400ms"
_LOSS_PERCENT = 5
_LOSS = f"netem loss {_LOSS_PERCENT}%"
_LOSS_RULES = f"""
table inet loss {{
  chain out {{
    type filter hook output priority 0; policy accept;
    oifname eth0 numgen random mod 100 < {_LOSS_PERCENT} drop
  }}
  chain in {{
    type filter hook input priority 0; policy accept;
    iifname eth0 numgen random mod 100 < {_LOSS_PERCENT} drop
  }}
}}
"""


def what_is_missing() -> str | None:
    """Return why no hosts can be made here, as a sentence; None if they can."""
    if os.geteuid() != 0:
        return "Network namespaces take root."
    for name in ("unshare", "nsenter", "ip", "tc", "setpriv", "mount"):
        if shutil.which(name) is None:
            return f"The program '{name}' is not installed: install iproute2 and util-linux."
    command = ["unshare", "-n", "-m", "-p", "--fork", "true"]
    tried = subprocess.run(command, capture_output=True, text=True)
    if tried.returncode:
        return f"This machine makes no namespaces: {tried.stderr.strip()}."
    return None


def enter(module: str, arguments: Sequence[str]) -> int | None:
    """Run a module in namespaces of its own; return its exit code, or None if this is it.

    The module is the first process of its namespace, so the kernel kills all others with it. It is
    killed if this process is, and is asked to end, with SIGTERM, if this process is. Call it from
    the main thread.
    """
    if os.environ.get(_INSIDE):
        signal.signal(signal.SIGTERM, _leave)
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(SCRATCH)], check=True)
        (SCRATCH / "netns").mkdir()
        return None
    namespaces = ["--net", "--mount", "--pid", "--mount-proc", "--fork", "--kill-child"]
    command = ["setpriv", "--pdeathsig", "KILL", "unshare", *namespaces, "--", sys.executable]
    process = subprocess.Popen(
        [*command, "-m", module, *arguments],
        env=os.environ | {_INSIDE: "1"},
        start_new_session=True,  # Ctrl-C reaches this process only, which passes it on once
    )

    def end(*_: object) -> None:
        os.killpg(process.pid, signal.SIGTERM)
        signal.alarm(_STOP_TIMEOUT)

    def kill(*_: object) -> None:
        os.killpg(process.pid, signal.SIGKILL)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end)
    signal.signal(signal.SIGALRM, kill)
    return process.wait()


def _leave(*_: object) -> None:
    """End this program in an orderly way, once."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise SystemExit(128 + signal.SIGTERM)


@cache
def knows_netem() -> bool:
    """Return whether the kernel can delay and lose packets by `netem`."""
    add = ["tc", "qdisc", "add", "dev", "lo", "root", "netem", "delay", "0ms"]
    known = subprocess.run(add, capture_output=True).returncode == 0
    if known:
        subprocess.run(["tc", "qdisc", "del", "dev", "lo", "root"], check=True)
    return known


def can_lose() -> bool:
    """Return whether packets can be lost here: by `netem`, or else by nftables."""
    return knows_netem() or shutil.which("nft") is not None


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
        self._set_queues(_DELAY if knows_netem() else _SLOW)

    def lose(self) -> None:
        """Let the cable lose packets, in both directions."""
        if knows_netem():
            self._set_queues(_LOSS)
        else:
            self._nft("-f", "-", rules=_LOSS_RULES)

    def mend(self) -> None:
        """Make the cable as good as new."""
        _ip(f"link set {self._cable} up")
        for tc, end in self._ends():
            # There is nothing to delete if it was not slow, or lost nothing.
            subprocess.run([*tc, "qdisc", "del", "dev", end, "root"], capture_output=True)
        if not knows_netem() and can_lose():
            self._nft("flush", "ruleset")

    def _ends(self) -> list[tuple[list[str], str]]:
        return [(["tc"], self._cable), (["tc", "-n", self.name], "eth0")]

    def _set_queues(self, kind: str) -> None:
        for tc, end in self._ends():
            command = [*tc, "qdisc", "replace", "dev", end, "root", *kind.split()]
            subprocess.run(command, check=True, capture_output=True)

    def _nft(self, *arguments: str, rules: str | None = None) -> None:
        command = self.command(["nft", *arguments])
        subprocess.run(command, input=rules, text=True, check=True, capture_output=True)


def make_switch() -> None:
    """Connect the hosts to come with each other and with this program."""
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
