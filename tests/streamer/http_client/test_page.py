"""The code of docs/python.md runs as it stands there, one piece after the other."""

import re
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from nvila_core.resolution.policy import Measures
from streamer.domain.ids import new_id
from streamer.domain.result import Result
from streamer.service import Service
from tests.support.api_server import ApiServer
from tests.support.videos import write_video

PAGE = Path(__file__).parents[3] / "docs" / "python.md"


def serve(client: Service, ended: threading.Event) -> None:
    """Store frames and captions of every stream, and answer every query, as the workers do."""
    while not ended.wait(0.05):
        for stream in client.streams():
            common: dict[str, Any] = {"stream_id": stream.id, "stream_name": stream.name}
            measures = Measures(32, 24, change=0.0)
            client.frames.put(stream.id, b"jpeg", measures, time=time.time(), pts=time.time())
            caption = Result(
                request_id=new_id("req"),
                kind="caption",
                prompt="Describe.",
                text="A gate.",
                **common,
            )
            client.queue.publish(caption, owner_id=None)
            client.timeline.record([caption])
            for query in client.queries():
                if query.result is None:
                    answer = Result(
                        request_id=query.id,
                        kind="answer",
                        prompt=query.prompt,
                        text=f"Answer: {query.prompt}",
                        **common,
                    )
                    client.queue.publish(answer, owner_id=None)
                    client.cancel(query.id)  # detaches the recording of a query that has ended


def test_the_code_of_the_page_runs(
    api_server: ApiServer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    api_server.client.settings.webhook_hosts = ["198.51.100.7"]  # an address of documentation
    write_video(tmp_path / "evening.mp4", seconds=1)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STREAMER_API_URL", api_server.url)
    pieces = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    ended = threading.Event()
    workers = threading.Thread(target=serve, args=(api_server.client, ended))
    workers.start()
    names: dict[str, Any] = {}
    try:
        for piece in pieces:
            exec(compile(piece, str(PAGE), "exec"), names)
    finally:
        ended.set()
        workers.join()

    said = capsys.readouterr().out
    assert len(pieces) >= 8
    for words in ("Is the gate open?", "What happened?", "Is anybody there?", "A gate."):
        assert words in said
    assert "password" not in said
    assert api_server.client.streams() == []
