"""How often a worker may restart. test_gpu_faults tests with real processes that it does."""

import time

import pytest

from workers.process.restart import RESTART_WINDOW, recent_restarts, restart_process

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
        (f"{NOW - RESTART_WINDOW - 1},{NOW - 1}", [NOW - 1]),
        (f"nonsense,,{NOW - 1},nan", [NOW - 1]),
        (f"{NOW + 1000}", []),
    ],
)
def test_only_recent_restarts_count(history, text, times):
    history(text)
    assert recent_restarts(NOW) == times


def test_too_many_restarts_end_with_a_sentence_that_says_why(history):
    history(",".join(str(time.monotonic() - i) for i in range(3)))
    sentence = restart_process("the engine lost its device", limit=3)
    assert "4 times within 10 minutes" in sentence
    assert "the engine lost its device" in sentence


def test_no_restart_may_be_allowed(history):
    assert "1 times" in restart_process("it broke", limit=0)
