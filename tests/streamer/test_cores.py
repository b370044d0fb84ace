"""How many cores and threads a process uses."""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from streamer.cores import usable_cores
from streamer.media.source import recording_threads


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cores can be chosen on Linux")
def test_decoding_a_recording_leaves_a_core_to_the_rest_of_its_ingest() -> None:
    # given a thread that may use one core of the machine
    def restricted() -> tuple[int, int]:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        return usable_cores(), recording_threads()

    with ThreadPoolExecutor(1) as thread:
        # when
        cores, threads = thread.submit(restricted).result()
    # then one thread decodes; elsewhere one fewer than there are cores, up to four
    assert (cores, threads) == (1, 1)
    assert recording_threads() == max(1, min(4, len(os.sched_getaffinity(0)) - 1))
