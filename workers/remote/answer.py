"""Read a server's answer: its text, its form, and how probable each choice is."""

import json
import re
from collections.abc import Sequence
from math import exp
from typing import Any

from nvila_core.errors import PromptError
from nvila_core.generation.completion import Completion, FinishReason, Timings, Usage
from nvila_core.generation.grammar import fits_schema, schema_text
from streamer.errors import ErrorCode, StreamerError
from streamer.queues.deltas import DeltaToken
from streamer.response_format import ChoiceFormat, JsonFormat, ResponseFormat
from workers.remote.question import ANSWER

THOUGHTS = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL)
"""What a model says to itself before its answer."""

_FENCE = re.compile(r"\A```(?:json)?\s*\n(.*?)\n?```\Z", re.DOTALL)
_VALUE = re.compile(rb'"' + ANSWER.encode() + rb'"\s*:\s*"')
_MAX_SHOWN = 120


def read_answer(
    body: dict[str, Any], form: ResponseFormat, *, tiles: int, timings: Timings
) -> Completion:
    """Return a server's answer, given as the body of its reply, checked against its form.

    Of the usage, `vision_tokens` and `cached_tiles` are 0, because servers do not tell them.

    Raises StreamerError: MODEL_FAILED if it is none; FORM_IGNORED if it is whole, but has another
    form.
    """
    try:
        chosen = body["choices"][0]
        message = chosen["message"]
        text = message.get("content") or ""
        reason = chosen.get("finish_reason")
        tokens = (chosen.get("logprobs") or {}).get("content") or []
        if not isinstance(text, str):
            raise TypeError
    except (KeyError, IndexError, TypeError, AttributeError):
        raise StreamerError(
            ErrorCode.MODEL_FAILED,
            "The model's server answered in another form than OpenAI's API: check base_url.",
        ) from None
    if reason == "content_filter" or (not text and message.get("refusal")):
        raise StreamerError(
            ErrorCode.MODEL_FAILED,
            "The model's server refused to answer: ask differently, or use another model.",
        )
    finish: FinishReason = "length" if reason == "length" else "stop"
    text = THOUGHTS.sub("", text).strip()
    if finish == "stop" and form.type != "text":
        text = _formed(text, form)
    probabilities = None
    if form.type == "choice" and text in form.choices:
        probabilities = choice_probabilities(tokens, form.choices)
    return Completion(
        text=text,
        token_ids=[],
        finish_reason=finish,
        usage=_usage(body.get("usage"), tiles),
        timings=timings,
        choice_probabilities=probabilities,
    )


def _usage(given: Any, tiles: int) -> Usage:
    given = given if isinstance(given, dict) else {}
    details = given.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else None
    return Usage(
        prompt_tokens=_count(given.get("prompt_tokens")),
        cached_tokens=_count(cached),
        completion_tokens=_count(given.get("completion_tokens")),
        tiles=tiles,
    )


def _count(value: Any) -> int:
    return value if isinstance(value, int) and value >= 0 else 0


def _formed(text: str, form: ResponseFormat) -> str:
    """Return a whole answer in its form. Raises StreamerError(FORM_IGNORED)."""
    fenced = _FENCE.match(text)
    text = fenced[1].strip() if fenced else text
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
        if isinstance(form, JsonFormat):
            raise _ignored(text, "JSON") from None
    if isinstance(form, ChoiceFormat):
        choice = value.get(ANSWER) if isinstance(value, dict) else value or text
        if choice not in form.choices:
            raise _ignored(text, "one of the choices")
        return str(choice)
    assert isinstance(form, JsonFormat)
    try:
        found = fits_schema(value, schema_text(form.json_schema))
    except PromptError as error:
        raise StreamerError(ErrorCode.INVALID_REQUEST, str(error)) from None
    if found is None:
        raise _ignored(text, "JSON of the schema")
    return found


def _ignored(text: str, form: str) -> StreamerError:
    shown = " ".join(text.split())[:_MAX_SHOWN]
    return StreamerError(
        ErrorCode.FORM_IGNORED,
        f"The answer of the model's server is not {form}: use a server that obeys "
        f"response_format, or a larger model. It began: {shown}",
    )


def read_tokens(reply: dict[str, Any], after: int = 0) -> list[DeltaToken]:
    """Return the tokens of an answer after its first ones, with their log-probabilities; none if
    the reply has none."""
    try:
        drawn = reply["choices"][0]["logprobs"]["content"][after:]
        return [_token(each, each["top_logprobs"]) for each in drawn]
    except (KeyError, IndexError, TypeError, ValueError):
        return []


def _token(given: dict[str, Any], top: Sequence[dict[str, Any]] = ()) -> DeltaToken:
    return DeltaToken(
        bytes=list(_bytes(given)), logprob=given["logprob"], top=[_token(each) for each in top]
    )


def choice_probabilities(
    tokens: Sequence[dict[str, Any]], choices: Sequence[str]
) -> dict[str, float] | None:
    """Return the probability of each choice, together 1, from the log-probabilities of an answer.

    At each token where the choices left differ, the probabilities of the alternatives that lead to
    one of them are renormalised. Choices that only an alternative leads to share its probability;
    those that no alternative leads to have 0. None without usable log-probabilities.

    Args:
        tokens: of the answer, as OpenAI's API has them in `logprobs.content`.
        choices: the answer is one of them, in the object of `question.answer_schema` or alone.
    """
    try:
        drawn = [(_bytes(token), token["logprob"], token["top_logprobs"]) for token in tokens]
        return _shares(drawn, choices)
    except (KeyError, TypeError, ValueError, OverflowError):
        return None


def _shares(
    drawn: Sequence[tuple[bytes, float, list[dict[str, Any]]]], choices: Sequence[str]
) -> dict[str, float] | None:
    whole = b"".join(token for token, _, _ in drawn)
    found = list(_VALUE.finditer(whole))
    start = found[-1].end() if found else len(whole) - len(whole.lstrip())
    # with the quotation mark that ends it, so that no choice begins another
    ends = {c: (json.dumps(c, ensure_ascii=False)[1:] if found else c).encode() for c in choices}
    left, mass, at = list(choices), 1.0, 0
    shares = dict.fromkeys(choices, 0.0)
    for token, logprob, top in drawn:
        begin, at = at, at + len(token)
        if at <= start:
            continue
        lead, said = whole[begin : max(begin, start)], whole[start : max(begin, start)]
        paths: dict[bytes, tuple[float, list[str]]] = {}
        for text, value in [*((_bytes(each), each["logprob"]) for each in top), (token, logprob)]:
            if text.startswith(lead):
                prefix = said + text[len(lead) :]
                leads_to = [
                    c for c in left if ends[c].startswith(prefix) or prefix.startswith(ends[c])
                ]
                paths[text] = exp(value), leads_to
        mine = paths.pop(token, (0.0, []))
        if not mine[1]:
            return None
        if len(mine[1]) == len(left):  # it leads to all of them
            continue
        others = [(p, to) for p, to in paths.values() if to and len(to) < len(left)]
        total = mine[0] + sum(p for p, _ in others)
        for p, to in others:
            for choice in to:
                shares[choice] += mass * p / total / len(to)
        left, mass = mine[1], mass * mine[0] / total
        if len(left) == 1:
            break
    else:
        if len(left) > 1 and len(choices) > 1:
            return None  # it was cut before they differ
    for choice in left:
        shares[choice] += mass / len(left)
    return shares


def _bytes(token: dict[str, Any]) -> bytes:
    raw = token.get("bytes")
    return bytes(raw) if raw else str(token["token"]).encode()
