"""A worker of one installation asks the API of another: both ends of OpenAI's API are our own."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nvila_core.demo import CHECKPOINT
from nvila_core.resolution.policy import Measures
from streamer.alert_rule import AlertRule
from streamer.domain.kinds import RequestKind
from streamer.domain.request import ClipRequest
from streamer.domain.timestamp import utc_now
from streamer.response_format import ChoiceFormat, JsonFormat, TextFormat
from streamer.service import Service
from streamer.settings import ENV_PREFIX
from tests.support.clips import jpeg_of, picture

ROOT = Path(__file__).parents[3]
ANSWER_WITHIN = 120.0

MODEL = CHECKPOINT.name
"""What the other installation calls its model."""


@pytest.fixture
def elsewhere(chat_service, tmp_path):
    """Another installation, whose worker asks the API of `chat_service`."""
    address, _, _ = chat_service.client.settings.redis_url.partition("/0")
    settings = chat_service.client.settings.model_copy(
        update={"redis_url": f"{address.rstrip('/')}/1", "data_dir": tmp_path}
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith(ENV_PREFIX)}
    environment |= {
        "STREAMER_REDIS_URL": settings.redis_url,
        "STREAMER_DATA_DIR": str(tmp_path),
        "STREAMER_BACKEND": "openai",
        "STREAMER_BASE_URL": chat_service.url,
        "STREAMER_MODEL": MODEL,
    }
    with Service(settings) as client, (tmp_path / "worker.log").open("wb") as log:
        client.connections.main.flushdb()
        worker = subprocess.Popen(
            [sys.executable, "-m", "workers.gpu"], cwd=ROOT, env=environment, stderr=log
        )
        yield client
        worker.terminate()
        worker.wait()
        client.connections.main.flushdb()


@pytest.mark.slow
def test_a_clip_is_answered_by_the_model_of_another_installation(elsewhere, chat_service):
    client, now = elsewhere, time.time()
    refs = [
        client.frames.put(
            "str_1",
            jpeg_of(picture(n, 640, 480)),
            Measures(640, 480, change=0.0),
            time=now - 3 + n,
            pts=float(n),
        )
        for n in range(3)
    ]

    def ask(form, **fields):
        asked = ClipRequest(
            kind=RequestKind.QUERY,
            stream_id="str_1",
            stream_name="yard",
            start=utc_now(),
            end=utc_now(),
            prompt="Is a car parked?",
            frames=refs,
            max_tokens=24,
            response_format=form,
            **fields,
        )
        client.jobs.submit(asked)
        result = client.queue.wait(asked.id, ANSWER_WITHIN)
        assert result is not None, (client.settings.data_dir / "worker.log").read_text()
        assert result.error is None
        return result

    # a caption, with the counts of the other side
    text = ask(TextFormat())
    assert text.text
    assert (text.model, text.frames, text.vision_tokens) == (MODEL, 3, 0)
    assert text.prompt_tokens > 20
    assert text.completion_tokens > 0
    # a choice, and an alert with its probability
    choice = ask(ChoiceFormat(choices=["yes", "no"]), logprobs=0)
    assert choice.data["choice"] in ("yes", "no")
    assert sum(choice.data["probabilities"].values()) == pytest.approx(1)
    alert = ask(ChoiceFormat(choices=["yes", "no"]), logprobs=0, alert=AlertRule())
    assert 0 < alert.data["probability"] < 1
    assert alert.data["yes"] == (alert.data["probability"] >= 0.5)
    assert alert.warning is None
    # JSON of a schema
    schema = {
        "type": "object",
        "properties": {"car": {"type": "boolean"}},
        "required": ["car"],
        "additionalProperties": False,
    }
    assert ask(JsonFormat(json_schema=schema)).data["json"]["car"] in (True, False)
    # and the model is the one of the other installation
    assert list(chat_service.client.jobs.models()) == list(client.jobs.models()) == [MODEL]
