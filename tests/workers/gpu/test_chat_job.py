"""The chat job with a real engine and a real Redis, in this process."""

import io
import threading

import numpy as np
import pytest
from PIL import Image

from nvila_core import SamplingParams, Video
from streamer.domain.conversation import ChatRequest, FramesPart, TextPart, Turn
from streamer.domain.timestamp import utc_now
from streamer.errors import ErrorCode, StreamerError
from streamer.queues.jobs import CLIP_JOB
from streamer.queues.models import CLIP_QUEUES
from streamer.response_format import JsonFormat
from tests.support.clips import frames
from workers.gpu.chat_job import answer_chat
from workers.gpu.clip_job import answer_clip, publish_failure
from workers.rq.thread_worker import ThreadWorker

WAIT = 60


def chat(refs=(), turns=None, **fields):
    asked = [FramesPart(count=1) for _ in refs] + [TextPart(text="What is there?")]
    return ChatRequest(
        start=utc_now(),
        end=utc_now(),
        prompt="What is there?",
        frames=list(refs),
        turns=turns or [Turn(role="user", content=asked)],
        **{"max_tokens": 6} | fields,
    )


def run(own, asked):
    own.jobs.submit(asked)
    answer_chat(asked.model_dump(mode="json"))
    return own.results.get(asked.id)


def test_the_model_sees_the_turns_with_the_pictures_in_their_places(own, model):
    # given a conversation with a picture, and a video in a later turn
    refs = frames(own, 4)
    turns = [
        Turn(role="system", content=[TextPart(text="Be brief.")]),
        Turn(role="user", content=[TextPart(text="One:"), FramesPart(count=1, detail="low")]),
        Turn(role="assistant", content=[TextPart(text="A wall.")]),
        Turn(role="user", content=[FramesPart(count=3, detail="low"), TextPart(text="Now?")]),
    ]
    # when
    result = run(own, chat(refs, turns))
    # then it is the answer of the model alone
    shown = [np.asarray(Image.open(io.BytesIO(jpeg))) for jpeg in own.frames.load(refs)]
    alone = model.generate(
        model.prepare(
            [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": ["One:", Image.fromarray(shown[0])]},
                {"role": "assistant", "content": "A wall."},
                {"role": "user", "content": [Video(shown[1:], sampled=True), "Now?"]},
            ],
            num_video_frames=3,
        ),
        SamplingParams(max_tokens=6),
    )
    assert result.text == alone.text
    assert result.prompt_tokens == alone.usage.prompt_tokens
    assert (result.kind, result.frames, result.stream_id) == ("answer", 4, None)
    assert [frame.reason for frame in result.plan] == ["detail: low"] * 4


def test_detail_and_policy_plan_the_pictures_of_one_chat(own):
    # given
    own.settings.policy = "fixed:4"
    refs = frames(own, 3, width=640, height=320)
    parts = [FramesPart(count=1, detail=detail) for detail in ("low", "high", "auto")]
    asked = [Turn(role="user", content=[*parts, TextPart(text="What is there?")])]
    # when
    result = run(own, chat(refs, asked, max_tokens=2))
    # then
    reasons = [frame.reason for frame in result.plan]
    assert reasons == ["detail: low", "detail: high", "fixed: at most 4"]
    low, high, auto = (np.prod(frame.grid) for frame in result.plan)
    assert low == 1 < high
    assert 1 < auto <= 4


def test_an_answer_that_is_cut_says_so_by_its_finish_reason(own):
    form = JsonFormat(json_schema={"enum": ["a long answer"]})
    result = run(own, chat(response_format=form, max_tokens=3))
    assert (result.error, result.finish_reason, result.data) == (None, "length", None)
    assert result.text.startswith('"a')


def test_sampling_follows_the_request(own, model):
    result = run(own, chat(max_tokens=10, temperature=3.0, top_p=0.9, seed=11))
    params = SamplingParams(max_tokens=10, temperature=3.0, top_p=0.9, seed=11)
    alone = model.generate(["What is there?"], params)
    assert result.text == alone.text.replace("\0", "\ufffd")


def test_a_worker_of_an_older_release_refuses_a_chat_by_its_name(own):
    # given a worker that knows only clips
    worker = ThreadWorker(
        CLIP_QUEUES,
        own.connections.main,
        slots=1,
        functions={CLIP_JOB: answer_clip},
        stopping=threading.Event(),
        lease=own.settings.lease,
        on_failed=publish_failure,
    )
    asked = chat()
    own.jobs.submit(asked)
    # when
    worker.work(burst=True)
    # then the chat ends with the reason
    result = own.results.wait(asked.id, timeout=WAIT)
    assert result.error.code is ErrorCode.INTERNAL
    assert "does not run 'workers.chat.answer'" in result.error.message


@pytest.mark.parametrize(
    ("content", "code"),
    [
        ([], ErrorCode.PROMPT_EMPTY),
        ([TextPart(text="  ")], ErrorCode.PROMPT_EMPTY),
        ([TextPart(text="word " * 60_000)], ErrorCode.PROMPT_TOO_LONG),
    ],
)
def test_a_chat_that_asks_nothing_or_too_much_is_refused(content, code):
    with pytest.raises(StreamerError) as refused:
        chat(turns=[Turn(role="user", content=content)]).check()
    assert refused.value.code is code
