"""A camera whose only address is link-local: its URL names the interface."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.videos import write_video

ROOT = Path(__file__).parents[3]


@pytest.fixture
def namespace() -> Iterator[str]:
    """A network namespace whose loopback interface has the address fe80::1."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("a network namespace takes root and iproute2")
    name = f"zone-{os.getpid()}"
    try:
        for command in (
            f"ip netns add {name}",
            f"ip netns exec {name} ip link set lo up",
            f"ip netns exec {name} ip addr add fe80::1/64 dev lo nodad",
        ):
            if subprocess.run(command.split(), capture_output=True).returncode:
                pytest.skip("this machine makes no network namespace with IPv6")
        yield name
    finally:
        subprocess.run(["ip", "netns", "del", name], capture_output=True)


@pytest.mark.parametrize("zone", ["%25lo", "%lo"])
def test_a_camera_at_a_link_local_address_is_opened(
    namespace: str, tmp_path: Path, zone: str
) -> None:
    video = tmp_path / "clip.mp4"
    write_video(video, seconds=2.0, width=64, height=48)
    program = [sys.executable, "-m", "tests.support.programs.zone", str(video), zone]
    done = subprocess.run(
        ["ip", "netns", "exec", namespace, *program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "64x48\n"
