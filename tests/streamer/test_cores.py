"""How many cores and threads a process uses."""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from streamer.cores import usable_cores
from streamer.media import source
from streamer.media.source import recording_threads


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cores can be chosen on Linux")
def test_a_process_that_may_use_one_core_decodes_a_recording_in_one_thread() -> None:
    # given a thread that may use one core of the machine
    def restricted() -> tuple[int, int]:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        return usable_cores(), recording_threads()

    with ThreadPoolExecutor(1) as thread:
        # when
        found = thread.submit(restricted).result()
    # then
    assert found == (1, 1)


@pytest.mark.parametrize(("cores", "threads"), [(1, 1), (2, 1), (4, 3), (5, 4), (64, 4)])
def test_decoding_a_recording_leaves_a_core_to_the_rest_of_its_ingest(
    cores: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "usable_cores", lambda: cores)
    assert recording_threads() == threads
