"""How often a worker may begin again. That it does is tested with real ones in test_gpu_faults."""

import pytest

from workers.process.restart import WITHIN, begin_again, recent

NOW = 1_700_000_000.0


@pytest.fixture
def history(monkeypatch):
    def remember(text):
        monkeypatch.setenv("NVILA_WORKER_RESTARTS", text)

    remember("")
    return remember


@pytest.mark.parametrize(
    ("text", "times"),
    [
        ("", []),
        (f"{NOW - 5},{NOW - 1}", [NOW - 5, NOW - 1]),
        (f"{NOW - WITHIN - 1},{NOW - 1}", [NOW - 1]),
        (f"nonsense,,{NOW - 1},nan", [NOW - 1]),
        (f"{NOW + 1000}", []),
    ],
)
def test_only_restarts_of_late_count(history, text, times):
    history(text)
    assert recent(NOW) == times


def test_too_many_end_with_a_sentence_that_says_why(history):
    import time

    history(",".join(str(time.time() - i) for i in range(3)))
    said = begin_again("the engine lost its device", most=3)
    assert "4 times within 10 minutes" in said
    assert "the engine lost its device" in said


def test_none_may_be_allowed(history):
    assert "1 times" in begin_again("it broke", most=0)
