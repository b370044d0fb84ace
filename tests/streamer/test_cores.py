"""How many cores and threads a process uses."""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from streamer.cores import usable_cores
from streamer.media.source import recording_threads


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cores can be chosen on Linux")
def test_a_recording_is_decoded_by_no_more_threads_than_there_are_cores() -> None:
    # given a thread that may use one core of the machine
    def restricted() -> tuple[int, int]:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        return usable_cores(), recording_threads()

    with ThreadPoolExecutor(1) as thread:
        # when
        cores, threads = thread.submit(restricted).result()
    # then one thread decodes, and elsewhere as many as there are cores, up to four
    assert (cores, threads) == (1, 1)
    assert recording_threads() == min(4, len(os.sched_getaffinity(0)))
