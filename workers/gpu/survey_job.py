"""Ask a question of several windows, and sum up the answers: the survey job.

The job only waits: the windows and the summaries are jobs of their own, whose ids are derived from
the survey's, so that a worker that takes it over asks nothing twice.
"""

import hashlib
import json
import math
from collections import deque
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from nvila_core.errors import shorten
from streamer.domain.conversation import ChatRequest, TextPart, Turn
from streamer.domain.error_info import ErrorInfo
from streamer.domain.frame import FrameRef
from streamer.domain.kinds import RequestKind
from streamer.domain.question import Question
from streamer.domain.request import ClipRequest
from streamer.domain.result import Result
from streamer.domain.summaries import SUMMARY_TOKENS, summarise, summary_of
from streamer.domain.survey import SurveyRequest, SurveyWindow
from streamer.domain.timestamp import rfc3339, to_datetime
from streamer.errors import ErrorCode, StreamerError
from streamer.frames.history import FrameHistory
from streamer.limits import MAX_PROMPT, MAX_QUERY_WINDOWS, MAX_RECORDING_WINDOWS
from streamer.questions.queries import NotYet, Queries, Seen
from streamer.questions.recordings import RecordingResults, media_start
from streamer.questions.surveys import SurveyAnswers, release_recording
from streamer.queues.jobs import error_result
from workers.context import Abandon, BrokeDown, GiveBack, WorkerContext, place, stop_check
from workers.gpu.clip_job import answer_request, insist

_NAP = 0.25
"""Seconds between two looks for answers."""

_FIRST_FRAME_WAIT = 10.0
"""Seconds for which a stream that is being opened is waited for."""

_MAX_TEXT = 131_072
"""Characters of the answers of all windows in a result; the timeline has them whole."""

_SUMS = ("frames", "tiles", "vision_tokens", "prompt_tokens", "cached_tokens", "completion_tokens")
_TIMES = ("encode_ms", "generate_ms")

_LOST = ErrorInfo(
    code=ErrorCode.JOB_LOST,
    message="Redis lost this request before it was answered: ask again.",
)


def answer_survey(request: dict[str, Any]) -> None:
    """Answer one SurveyRequest, given as JSON; see `clip_job.answer_request`."""
    answer_request(SurveyRequest, request, _answer)


def _answer(context: WorkerContext, survey: SurveyRequest, started: float) -> Result:
    place().rest()  # until its end: what it waits for needs the slots
    run = _Run(context, survey, deadline=started + context.settings.query_ttl)
    try:
        return run.answer()
    except (GiveBack, BrokeDown, Abandon):
        if insist(lambda: context.results.answered(survey.id)):  # it was cancelled
            run.release()
        raise
    except BaseException:
        run.release()
        raise


class _Run:
    """One run of a survey, from where an earlier worker left it.

    Args:
        deadline: when to give up, epoch seconds.
    """

    def __init__(self, context: WorkerContext, survey: SurveyRequest, deadline: float) -> None:
        self._context = context
        self._survey = survey
        self._deadline = deadline
        self._stop = stop_check()
        settings = context.settings
        self._answers = SurveyAnswers(context.connections.main, survey.id, settings.query_ttl)
        history = FrameHistory(context.connections, settings, context.frames, clock=context.clock)
        self._queries = Queries(
            context.connections.main,
            settings,
            history,
            context.jobs,
            context.results,
            context.clock,
        )
        self._spent: list[Result] = []  # what summaries cost
        self._incomplete: str | None = None  # why a recording was not read to its end

    def answer(self) -> Result:
        """Return the result of the survey."""
        survey = self._survey
        survey.check()
        if survey.blocks:
            text = summarise(survey.blocks, self._ask)
            return self._summed(text, {"blocks": _texts(survey), **survey.counts})
        self._ask_windows()
        self._release_recording()
        found = sorted(insist(self._answers.all).values(), key=_order)
        answered = [result for result in found if result.error is None]
        data: dict[str, Any] = {
            **_place(found),
            "windows": _entries(found),
            "unknown": len(found) - len(answered),
        }
        if not answered:
            return self._failed(found, data)
        if len(found) == 1:
            only = answered[0]
            return self._summed(only.text, {**data, **_form(only)}, found)
        summary = summary_of(
            survey.stream_name,
            survey.start,
            survey.end,
            map(_on_its_clock, answered),
            self._ask,
            survey.prompt,
        )
        return self._summed(summary.text, data, found)

    def release(self) -> None:
        """Stop what the survey has asked for, and detach its recording."""
        insist(partial(self._context.jobs.abandon, self._survey.id))
        self._release_recording()

    def _release_recording(self) -> None:
        """Detach the recording. The requests for the summary, which an earlier worker may have
        submitted, go on."""
        context, survey = self._context, self._survey
        if survey.recording:
            insist(
                partial(
                    release_recording,
                    context.jobs,
                    context.streams,
                    context.windows,
                    survey.stream_id,
                )
            )

    # Windows

    def _ask_windows(self) -> None:
        """Ask about every window, until each has an answer or will have none."""
        survey = self._survey
        if survey.recording:
            self._follow_recording()
            return
        windows = survey.windows
        insist(lambda: self._answers.expect(len(windows)))
        known = insist(self._answers.all)
        left = deque(window for window in windows if self._id(window.number) not in known)
        waiting: dict[str, ClipRequest] = {}
        while left or waiting:
            while left and len(waiting) < self._context.settings.max_file_clips:
                window = left.popleft()
                request, error = self._request(window)
                if error is None:
                    insist(partial(self._context.jobs.submit, request))
                    waiting[request.id] = request
                else:
                    failed = error_result(request, error.code, error.message)
                    insist(partial(self._answers.add, [failed]))
            fresh = self._collect(waiting)
            insist(partial(self._answers.add, fresh))
            if waiting and not fresh:
                self._wait()

    def _request(self, window: SurveyWindow) -> tuple[ClipRequest, StreamerError | None]:
        """Return the request about a window, and why it cannot be answered, if so."""
        survey = self._survey
        frames: list[FrameRef] = []
        fields: dict[str, Any] = {}
        error = None
        try:
            seen = self._see(window)
        except StreamerError as problem:
            error = problem
        else:
            frames = seen.frames
            fields = {"gaps": seen.gaps, "stale": seen.stale}
        start, end = window.start, window.end
        if survey.now and frames:
            start, end = to_datetime(frames[0].time), to_datetime(frames[-1].time)
        request = ClipRequest(
            id=self._id(window.number),
            kind=RequestKind.QUERY if survey.now else RequestKind.FILE,
            stream_id=window.stream.id,
            stream_name=window.stream.name,
            start=start,
            end=end,
            prompt=survey.prompt,
            frames=frames,
            max_tokens=survey.max_tokens,
            model=window.stream.model,
            response_format=survey.response_format,
            part_of=survey.id,
            **fields,
        )
        return request, error

    def _see(self, window: SurveyWindow) -> Seen:
        """Choose the frames of a window; see `Queries.see`. Raises StreamerError."""
        context, survey = self._context, self._survey
        question = Question(
            prompt=survey.prompt,
            since=None if survey.now else window.start,
            until=None if survey.now else window.end,
            max_frames=survey.max_frames,
            stale_ok=survey.stale_ok,
        )
        deadline = context.clock.monotonic() + _FIRST_FRAME_WAIT
        while True:
            try:
                return insist(
                    lambda: self._queries.see(question, context.streams.get(window.stream.id))
                )
            except NotYet:
                if context.clock.monotonic() >= deadline:
                    raise
            self._wait()

    def _follow_recording(self) -> None:
        """Note the answers about a recording, until each of its windows has one."""
        context, survey = self._context, self._survey
        recording = insist(lambda: context.streams.find(survey.stream_id))
        if recording is None:  # an earlier worker has seen its end, or a user has detached it
            progress = insist(self._answers.progress)
            if progress.windows is None or progress.done < progress.windows:
                raise StreamerError(
                    ErrorCode.UNKNOWN_STREAM,
                    f"'{survey.stream_name}' was detached before it was answered: ask again.",
                )
            self._note_cut(progress.done)
            return
        following = RecordingResults(
            context.streams,
            context.jobs,
            context.results,
            context.windows,
            insist(lambda: context.streams.get(survey.stream_id)),
            insist(context.results.last_id),
            context.clock,
        )
        while not following.finished:
            fresh = insist(partial(following.advance, block=_NAP))
            insist(partial(self._answers.add, fresh))
            counters = following.status.counters
            expected = None
            if following.over:
                expected = max(counters.clips, len(following.results))
            elif counters.duration:
                expected = max(1, round(counters.duration / (survey.window or 1.0)))
            if expected is not None:
                insist(partial(self._answers.expect, expected))
            if len(following.results) >= MAX_RECORDING_WINDOWS and not following.finished:
                insist(partial(self._answers.expect, len(following.results)))
                self._note_cut(len(following.results))
                return
            self._check()
        trouble = following.status.error or next(iter(following.status.warnings), None)
        if trouble is not None and not following.results:
            raise StreamerError(trouble.code, trouble.message)
        self._incomplete = trouble.message if trouble is not None else None

    def _note_cut(self, windows: int) -> None:
        """Note that the rest of the recording is not read, if it has too many windows."""
        if windows >= MAX_RECORDING_WINDOWS:
            self._incomplete = (
                f"Only the first {windows} windows of the recording were read: ask about longer "
                "ones (window, --every) to have more of it read."
            )

    # Summary

    def _ask(self, questions: Sequence[str]) -> list[str | None]:
        """Return the model's answers to questions without pictures; None for one that failed."""
        context, survey = self._context, self._survey
        last = len(questions) == 1
        requests = [
            ChatRequest(
                id=self._id(text),
                start=survey.start,
                end=survey.end,
                prompt=text[:MAX_PROMPT],
                frames=[],
                turns=[Turn(role="user", content=[TextPart(text=text)])],
                max_tokens=SUMMARY_TOKENS,
                model=survey.model,
                part_of=survey.id,
                deltas_of=survey.id if last else None,
            )
            for text in questions
        ]
        waiting: dict[str, ClipRequest] = {}
        for request in requests:
            insist(partial(context.jobs.submit, request))
            waiting[request.id] = request
        found: dict[str, Result] = {}
        while waiting:
            fresh = self._collect(waiting)
            found |= {result.request_id: result for result in fresh}
            if waiting and not fresh:
                self._wait()
        results = [found[request.id] for request in requests]
        self._spent += results
        failed = next((result.error for result in results if result.error is not None), None)
        texts = [None if result.error is not None else result.text for result in results]
        if failed is not None and not any(texts):
            raise StreamerError(
                failed.code, f"The answers could not be summed up. {failed.message}"
            )
        return texts

    # Results

    def _collect(self, waiting: dict[str, ClipRequest]) -> list[Result]:
        """Take the requests out of `waiting` that have ended, and return their results."""
        context = self._context
        ids = list(waiting)
        # The jobs first: one that is gone has its result, or never will.
        there = insist(partial(context.jobs.existing, ids))
        found = insist(partial(context.results.get_many, ids))
        fresh = []
        for request_id, result, has_job in zip(ids, found, there, strict=True):
            if result is None and not has_job:
                result = error_result(waiting[request_id], _LOST.code, _LOST.message)
            if result is not None:
                fresh.append(result)
                del waiting[request_id]
        return fresh

    def _summed(
        self, text: str | None, data: dict[str, Any], windows: Sequence[Result] = ()
    ) -> Result:
        spent = [*windows, *self._spent]
        totals = {name: sum(getattr(each, name) for each in spent) for name in (*_SUMS, *_TIMES)}
        seen_from = [each.frames_from for each in windows if each.frames_from is not None]
        seen_to = [each.frames_to for each in windows if each.frames_to is not None]
        if text is None:
            raise StreamerError(ErrorCode.MODEL_FAILED, "The model summed up nothing: ask again.")
        return Result.answering(
            self._survey,
            text=text,
            data=data,
            warning=" ".join(filter(None, (_unknown(windows), self._incomplete))) or None,
            finish_reason="stop",
            frames_from=min(seen_from, default=None),
            frames_to=max(seen_to, default=None),
            **totals,
        )

    def _failed(self, found: Sequence[Result], data: dict[str, Any]) -> Result:
        """Return the error result of a survey without a single answer."""
        if not found:
            error = ErrorInfo(
                code=ErrorCode.NO_FRAMES,
                message="There is no frame to ask about: see the state of the stream.",
            )
        else:
            first = next(result.error for result in found if result.error is not None)
            error = ErrorInfo(code=first.code, message=_unknown(found) or first.message)
        return Result.answering(self._survey, error=error, data=data)

    def _id(self, part: int | str) -> str:
        """Return the id of the request of a part: the same in every run."""
        digest = hashlib.sha256(f"{self._survey.id} {part}".encode()).hexdigest()
        return f"req_{digest[:16]}"

    def _wait(self) -> None:
        self._check()
        self._context.clock.sleep(_NAP)

    def _check(self) -> None:
        """Raise GiveBack if the job is no longer wanted here, StreamerError after its deadline."""
        if self._stop():
            raise GiveBack
        if self._context.clock.time() > self._deadline:
            raise StreamerError(
                ErrorCode.TIMEOUT,
                f"Not all windows were answered within {self._context.settings.query_ttl / 3600:g} "
                "h: ask about less, or add a worker.",
            )


def _order(result: Result) -> tuple[Any, ...]:
    if "media_start" in (result.data or {}):
        return (media_start(result), "")
    return ((result.start or result.created_at).timestamp(), result.stream_name or "")


def _on_its_clock(result: Result) -> Result:
    """Return a result of a recording with its place as a time of day that begins with it."""
    place = result.data or {}
    if "media_start" not in place:
        return result
    midnight = datetime(2000, 1, 1).astimezone()
    start, end = (
        midnight + timedelta(seconds=place[name]) for name in ("media_start", "media_end")
    )
    return result.model_copy(update={"start": start, "end": end})


def _entries(found: Sequence[Result]) -> list[dict[str, Any]]:
    """Return the answers of windows as the data of the result has them, long ones shortened.

    Of more than `MAX_QUERY_WINDOWS`, several in a row share an entry.
    """
    each = math.ceil(len(found) / MAX_QUERY_WINDOWS)
    groups = [found[at : at + each] for at in range(0, len(found), each or 1)]
    most = max(200, _MAX_TEXT // max(1, len(groups)))
    return [_entry(group, most) for group in groups]


def _entry(group: Sequence[Result], most: int) -> dict[str, Any]:
    """Return the entry of windows in a row, with at most `most` characters of each answer."""
    answered = [result for result in group if result.error is None]
    first = (answered or group)[0]
    texts = list(dict.fromkeys(result.text or "" for result in answered))
    form = _form(first) if len(texts) == 1 else {}
    return {
        "stream": first.stream_name,
        "start": _json_time(group[0].start),
        "end": _json_time(group[-1].end),
        **_place(group),
        **(form if len(json.dumps(form)) <= most else {}),
        "text": shorten(" / ".join(texts), most) if answered else None,
        "error": None if first.error is None else first.error.code,
        "frames": sum(result.frames for result in group),
        "request_id": first.request_id,
        **({"windows": len(group)} if len(group) > 1 else {}),
    }


def _json_time(moment: datetime | None) -> str | None:
    return None if moment is None else rfc3339(moment)


def _form(result: Result) -> Mapping[str, Any]:
    """Return the answer in the form that was asked for."""
    names = ("choice", "json")
    return {name: value for name, value in (result.data or {}).items() if name in names}


def _media(result: Result) -> Mapping[str, Any]:
    names = ("media_start", "media_end")
    return {name: value for name, value in (result.data or {}).items() if name in names}


def _place(found: Sequence[Result]) -> dict[str, Any]:
    """Return where in a recording the windows are, as results say it; nothing of a stream."""
    places = [place for result in found if (place := _media(result))]
    if not places:
        return {}
    return {
        "media_start": min(place["media_start"] for place in places),
        "media_end": max(place["media_end"] for place in places),
    }


def _texts(survey: SurveyRequest) -> list[dict[str, Any]]:
    return [block.model_dump(mode="json", exclude={"lines"}) for block in survey.blocks]


def _unknown(found: Sequence[Result]) -> str | None:
    """Return how many windows have no answer, as a sentence; None if each has one."""
    failed = [result for result in found if result.error is not None]
    if not failed or failed[0].error is None:
        return None
    number = f"{len(failed)} of {len(found)} windows {'is' if len(failed) == 1 else 'are'} unknown"
    return f"{number}. First error: {failed[0].error.message}"
