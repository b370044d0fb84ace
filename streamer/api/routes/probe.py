"""Route of `/v1/probe`: try a source step by step before it is attached."""

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Annotated

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Depends
from fastapi.sse import EventSourceResponse, ServerSentEvent
from starlette.concurrency import run_in_threadpool

from streamer.api.dependencies import ClientDependency
from streamer.api.schemas import ProbeBody
from streamer.domain.record import Record
from streamer.media.probe.report import ProbeReport, ProbeStep

MAX_PROBES = 4
"""Sources that are tried at the same time; others wait."""

router = APIRouter(prefix="/v1/probe", tags=["streams"])

_limiter = CapacityLimiter(MAX_PROBES)


class ProbeBegun(Record):
    """A step that has begun."""

    name: str


async def _checked(body: ProbeBody, client: ClientDependency) -> ProbeBody:
    """Refuse an address that is invalid or forbidden, before the response begins."""
    await run_in_threadpool(client.admission.split, body.url)
    return body


@router.post("", response_class=EventSourceResponse)
async def try_source(
    body: Annotated[ProbeBody, Depends(_checked)], client: ClientDependency
) -> AsyncIterator[ServerSentEvent]:
    """Try a source step by step, for at most 15 seconds, and send server-sent events meanwhile.

    `begun` has the `name` of a step that begins, `step` its outcome. `report`, the last one, has
    all of them, what is known about the source, and advice.
    """
    loop = asyncio.get_running_loop()
    news: asyncio.Queue[Record | None] = asyncio.Queue()  # None: the probe has ended

    def send_step(name: str, step: ProbeStep | None) -> None:
        loop.call_soon_threadsafe(news.put_nowait, step or ProbeBegun(name=name))

    left = threading.Event()

    def run() -> ProbeReport | None:
        if left.is_set():  # the caller did not wait for its turn: leave the camera alone
            return None
        from streamer.media.probe.prober import probe  # imports FFmpeg, which takes long

        return probe(
            body.url,
            transport=body.transport,
            hwaccel=client.settings.hwaccel,
            access=client.admission.access(),
            watch=0.5,
            on_step=send_step,
        )

    task = asyncio.ensure_future(to_thread.run_sync(run, abandon_on_cancel=True, limiter=_limiter))
    task.add_done_callback(lambda _: news.put_nowait(None))
    try:
        while (record := await news.get()) is not None:
            name = "step" if isinstance(record, ProbeStep) else "begun"
            yield ServerSentEvent(event=name, raw_data=record.model_dump_json())
        if (report := await task) is not None:
            yield ServerSentEvent(event="report", raw_data=report.model_dump_json())
    finally:
        left.set()
