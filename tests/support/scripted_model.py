"""A server with OpenAI's API that answers from a script, and remembers what it was asked."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Self

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

Reply = Response | dict[str, Any]
Script = Callable[[dict[str, Any]], Reply]

MODEL = "acme/eye-7b"


def said(text: str, **fields: Any) -> dict[str, Any]:
    """Return the body of an answer as vLLM writes it; `fields` are those of its choice."""
    choice = {"index": 0, "finish_reason": "stop", "logprobs": None} | fields
    choice["message"] = {"role": "assistant", "content": text}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "choices": [choice],
        "usage": {
            "prompt_tokens": 900,
            "completion_tokens": 7,
            "total_tokens": 907,
            "prompt_tokens_details": {"cached_tokens": 600},
        },
    }


def refused(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    """Return an error in OpenAI's form."""
    body = {"error": {"message": message, "type": "invalid_request_error", "code": None}}
    return JSONResponse(body, status, headers)


def streamed(events: Iterable[dict[str, Any] | str]) -> Response:
    """Return a reply that is streamed: bodies as the data of events, and lines as they are."""

    def lines() -> Iterator[str]:
        for event in events:
            yield event if isinstance(event, str) else f"data: {json.dumps(event)}\n\n"

    return StreamingResponse(lines(), media_type="text/event-stream")


def piece(text: str | None = None, reason: str | None = None, **fields: Any) -> dict[str, Any]:
    """Return an event of a streamed answer; `fields` are those of its choice."""
    delta = {} if text is None else {"content": text}
    choice = {"index": 0, "delta": delta, "finish_reason": reason} | fields
    return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "choices": [choice]}


class ScriptedModel:
    """The server.

    Attributes:
        url: what clients call base_url.
        asked: the bodies of the requests for chat completions, in order.
        keys: what each of them had as its Authorization.
        script: answers them; called in a thread.
        models: what `GET /v1/models` lists, or its reply.
    """

    def __init__(self, script: Script = lambda _: said("A street.")) -> None:
        self.script = script
        self.models: list[str] | Response = [MODEL]
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = int(self._socket.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self._server: uvicorn.Server | None = None

    def _app(self) -> FastAPI:
        app = FastAPI()

        @app.get("/v1/models")
        def models() -> Any:
            if isinstance(self.models, Response):
                return self.models
            cards = [{"id": name, "object": "model", "max_model_len": 8192} for name in self.models]
            return {"object": "list", "data": cards}

        @app.post("/v1/chat/completions")
        async def chat(request: Request) -> Any:
            from starlette.concurrency import run_in_threadpool

            body = await request.json()
            self.asked.append(body)
            self.keys.append(request.headers.get("authorization"))
            return await run_in_threadpool(self.script, body)

        return app

    def start(self) -> None:
        """Listen and answer."""
        config = uvicorn.Config(self._app(), log_config=None, timeout_graceful_shutdown=1)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, daemon=True
        )
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)

    def stop(self) -> None:
        """End: from then on the port refuses connections."""
        if self._server is not None:
            self._server.should_exit = True
            self._thread.join()
        self._server = None
        self._socket.close()

    def restart(self) -> None:
        """Listen again on the same port."""
        self._socket = socket.create_server(("127.0.0.1", self.port), backlog=128)
        self.start()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
