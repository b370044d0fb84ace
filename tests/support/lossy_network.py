"""A network that really loses packets: a network namespace behind a veth pair."""

import ipaddress
import itertools
import os
import shutil
import subprocess
from typing import Self

import pytest

_numbers = itertools.count()
_NETWORK = ipaddress.ip_network("198.18.0.0/15")  # set aside for measurements

_RULES = """
table inet loss {{
  chain out {{
    type filter hook output priority 0; policy accept;
    meta l4proto {{ tcp, udp }} numgen random mod 100 < {percent} drop
  }}
}}
"""


class LossyNetwork:
    """A network that loses `percent` of the packets sent from `namespace`, whose address is `host`.

    Skips the test if it cannot be made: that takes root, and netem in the kernel or nftables.
    """

    def __init__(self, percent: int) -> None:
        self._percent = percent
        number = next(_numbers)
        self.namespace = f"lossy-{os.getpid()}-{number}"
        self._outside = f"ls{os.getpid() % 100_000}x{number}"
        # four addresses of 198.18.0.0/15 each; processes of one run have numbers close together
        subnet = _NETWORK[4 * ((8 * os.getpid() + number % 8) % (_NETWORK.num_addresses // 4))]
        self._here, self.host = str(subnet + 1), str(subnet + 2)

    def __enter__(self) -> Self:
        if os.geteuid() != 0 or shutil.which("ip") is None:
            pytest.skip("a lossy network takes root and iproute2")
        if _run(f"ip netns add {self.namespace}"):
            pytest.skip("this machine has no network namespaces")
        try:
            self._connect()
            if not self._lose():
                pytest.skip("neither netem nor nftables is here to lose packets with")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        _run(f"ip netns del {self.namespace}")  # and the veth pair with it
        _run(f"ip link del {self._outside}")

    def _connect(self) -> None:
        inside = f"ip netns exec {self.namespace}"
        for command in (
            f"ip link add {self._outside} type veth peer name eth0 netns {self.namespace}",
            f"ip addr add {self._here}/30 dev {self._outside}",
            f"ip link set {self._outside} up",
            f"{inside} ip addr add {self.host}/30 dev eth0",
            f"{inside} ip link set eth0 up",
            f"{inside} ip link set lo up",
        ):
            if error := _run(command):
                pytest.skip(f"this machine makes no virtual network: {error}")

    def _lose(self) -> bool:
        inside = f"ip netns exec {self.namespace}"
        if not _run(f"{inside} tc qdisc add dev eth0 root netem loss {self._percent}%"):
            return True
        rules = _RULES.format(percent=self._percent)
        return shutil.which("nft") is not None and not _run(f"{inside} nft -f -", rules)


def _run(command: str, given: str | None = None) -> str:
    """Return the error message of `command`, or "" if it succeeded."""
    done = subprocess.run(command.split(), input=given, capture_output=True, text=True, timeout=100)
    return done.stderr.strip() or "failed" if done.returncode else ""
