"""Whole programs of others that look at cameras, unmodified, with the demo model."""

import json
import os
import shutil
import socket
import subprocess
import time

import httpx
import pytest

from nvila_core.demo import CHECKPOINT
from tests.support.client_venvs import python_with, run
from tests.support.videos import write_video

pytestmark = [pytest.mark.clients, pytest.mark.timeout(1800)]  # they install, and answer on a CPU

CHROMIUM = "/usr/bin/chromium"

START = 120.0
"""Seconds that a program may take to listen."""

WEBCAM = """
import json, sys
from playwright.sync_api import sync_playwright
address, chromium, wanted = sys.argv[1], sys.argv[2], int(sys.argv[3])
# what the page loads from the internet, as far as it calls it; it is not there offline
ELSEWHERE = (
    "window.lucide = {createIcons() {}}; window.marked = {parse: (text) => text};"
    "window.DOMPurify = {sanitize: (text) => text};"
)
flags = ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
heard = []
def hear(frame):
    message = json.loads(frame)
    if message["type"] == "vlm_response":
        heard.append(message)
with sync_playwright() as playwright:
    browser = playwright.chromium.launch(executable_path=chromium, args=flags)
    page = browser.new_context(permissions=["camera"]).new_page()
    page.route(
        lambda url: not url.startswith(address),
        lambda route: route.fulfill(body=ELSEWHERE, content_type="text/javascript"),
    )
    page.on("websocket", lambda socket: socket.on("framereceived", hear))
    page.goto(address)
    page.click("#bigStartBtn")
    for _ in range(2400):
        if heard and heard[-1]["metrics"]["total_inferences"] >= wanted:
            break
        page.wait_for_timeout(100)
    browser.close()
print(json.dumps(heard))
"""

HOMESEC = """
import asyncio, json, os, sys
from pathlib import Path
from homesec.models.filter import FilterResult
from homesec.models.vlm import VLMConfig
from homesec.plugins.analyzers.openai import OpenAIConfig, OpenAIVLM
url, clip = sys.argv[1:]
own = {"api_key_env": "KEY", "model": "demo", "base_url": url, "request_timeout": 600}
async def analyze():
    analyzer = OpenAIVLM(OpenAIConfig(**own))
    seen = FilterResult(
        detected_classes=["person"], confidence=0.9, model="yolo", sampled_frames=8
    )
    try:
        return await analyzer.analyze(Path(clip), seen, VLMConfig(backend="openai", config=own))
    finally:
        await analyzer.shutdown()
print(asyncio.run(analyze()).model_dump_json())
"""


def test_live_vlm_webui_shows_what_a_webcam_sees(chat_service, tmp_path):
    # given the program, and a browser whose webcam is a test picture
    if shutil.which(CHROMIUM) is None:
        pytest.skip("Chromium is not installed: apt-get install chromium")
    browser = python_with("browser", "playwright")
    python = python_with("live-vlm-webui", "live-vlm-webui==0.4.0")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [str(python.with_name("live-vlm-webui")), "--host=127.0.0.1", f"--port={port}"]
    command += ["--no-ssl", f"--api-base={chat_service.url}", "--model=demo", "--process-every=5"]
    address = f"http://127.0.0.1:{port}"
    with (tmp_path / "webui.log").open("wb") as log:
        program = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ)
        try:
            deadline = time.monotonic() + START
            while not listens(port):
                assert program.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.1)
            listed = httpx.get(f"{address}/models").json()["models"]
            # when somebody starts the camera in its page
            heard = json.loads(run([str(browser), "-c", WEBCAM, address, CHROMIUM, "3"]))
        finally:
            program.terminate()
            program.wait()
    # then it has our models, and shows captions of one picture after the other
    assert {CHECKPOINT.name, "stream/gate"} <= {model["id"] for model in listed}
    assert heard[-1]["metrics"]["total_inferences"] >= 3, (tmp_path / "webui.log").read_text()
    texts = [message["text"] for message in heard if message["metrics"]["total_inferences"]]
    assert all(text and not text.startswith("Error") for text in texts)


def listens(port: int) -> bool:
    """Return whether a program answers on a port of this machine."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_homesec_analyzes_a_clip(chat_service, tmp_path):
    # its analyzer needs neither the object detector nor the database of the whole program
    needs = ("aiohttp", "opencv-python-headless", "pillow", "pydantic")
    python = python_with("homesec", *needs, alone="homesec==1.12.0")
    clip = tmp_path / "clip.mp4"
    write_video(clip, seconds=4.0)
    said = json.loads(
        run(
            [str(python), "-c", HOMESEC, chat_service.url, str(clip)],
            variables={"KEY": "unused"},
        ).splitlines()[-1]
    )
    # its schema has no bounds, and it asks for 10,000 tokens: the answer is whole JSON all the same
    assert said["analysis"]["frame_count"] is not None
    assert said["risk_level"] in ("low", "medium", "high", "critical")
    assert said["prompt_tokens"] > 100
    assert said["completion_tokens"] > 10
