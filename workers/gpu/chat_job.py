"""Continue one conversation: the chat job."""

from typing import Any

from streamer.domain.conversation import ChatRequest
from streamer.domain.result import Result
from workers.context import WorkerContext
from workers.gpu.clip_job import answer_request, ask_model


def answer_chat(request: dict[str, Any]) -> None:
    """Answer one ChatRequest, given as JSON; see `clip_job.answer_request`."""
    answer_request(ChatRequest, request, _answer)


def _answer(context: WorkerContext, chat: ChatRequest, started: float) -> Result:
    chat.check()
    # Its caller sees by `finish_reason` that an answer was cut.
    return ask_model(context, chat, started)[0]
