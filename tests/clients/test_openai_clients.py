"""Libraries and programs written for OpenAI's API, unmodified, against the service."""

import base64
import json

import pytest

from tests.support.chat_service import data_url
from tests.support.client_venvs import node_with, python_with, run

pytestmark = pytest.mark.clients

LITELLM = """
import json, sys
import litellm
url, picture = sys.argv[1], open(sys.argv[2]).read()
options = {"api_base": url, "api_key": "unused", "max_tokens": 8}
def ask(*content, **more):
    messages = [{"role": "user", "content": list(content)}]
    return litellm.completion(messages=messages, **options | more)
text = {"type": "text", "text": "What is this?"}
shown = {"type": "image_url", "image_url": {"url": picture}}
camera = {"type": "image_url", "image_url": {"url": "stream://gate?last=1h"}}
whole = ask(text, shown, model="openai/demo")
pieces = ask(text, shown, model="openai/demo", stream=True)
streamed = "".join(chunk.choices[0].delta.content or "" for chunk in pieces)
now = ask(text, model="openai/stream/gate")
past = ask(text, camera, model="openai/demo")
refused = None
try:
    ask(text, model="openai/demo", temperature=9)
except litellm.BadRequestError as error:
    refused = str(error)
print(json.dumps({
    "whole": whole.choices[0].message.content, "streamed": streamed,
    "now": now.usage.prompt_tokens, "past": past.usage.prompt_tokens, "refused": refused,
}))
"""

LANGCHAIN = """
import json, sys
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI
from pydantic import BaseModel
url, picture = sys.argv[1], open(sys.argv[2]).read()
class Report(BaseModel):
    dark: bool
def model(name, **options):
    return ChatOpenAI(model=name, base_url=url, api_key="unused", max_tokens=40, **options)
text = {"type": "text", "text": "What is this?"}
def turn(address):
    shown = {"type": "image_url", "image_url": {"url": address}}
    return [SystemMessage("Be brief."), HumanMessage([text, shown])]
demo = model("demo")
whole = demo.invoke(turn(picture))
streamed = "".join(chunk.content for chunk in demo.stream(turn(picture)))
now = model("stream/gate").invoke("What is there?")
past = demo.invoke(turn("stream://gate?last=1h"))
report = demo.with_structured_output(Report, method="json_schema").invoke(turn(picture))
print(json.dumps({
    "whole": whole.content, "streamed": streamed, "now": now.usage_metadata["input_tokens"],
    "past": past.usage_metadata["input_tokens"], "dark": report.dark,
}))
"""

NODE = """
import fs from "node:fs";
import OpenAI from "openai";
const [url, file] = process.argv.slice(2);
const picture = fs.readFileSync(file, "utf8");
const client = new OpenAI({ baseURL: url, apiKey: "unused", maxRetries: 0 });
const text = { type: "text", text: "What is this?" };
const ask = (model, content, more = {}) => client.chat.completions.create(
  { model, max_tokens: 8, messages: [{ role: "user", content }], ...more });
const shown = [text, { type: "image_url", image_url: { url: picture } }];
const models = [];
for await (const model of client.models.list()) models.push(model.id);
const whole = await ask("demo", shown);
let streamed = "", usage = null;
const options = { stream: true, stream_options: { include_usage: true } };
for await (const chunk of await ask("demo", shown, options)) {
  streamed += chunk.choices[0]?.delta?.content ?? "";
  usage = chunk.usage ?? usage;
}
const now = await ask("stream/gate", [text]);
let refused = null;
try { await ask("demo", shown, { temperature: 9 }); } catch (error) {
  refused = [error.constructor.name, error.status, error.code, error.param];
}
console.log(JSON.stringify({
  models, whole: whole.choices[0].message.content, streamed, total: usage.total_tokens,
  now: now.usage.prompt_tokens, refused,
}));
"""


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.txt"
    path.write_text(data_url())
    return path


def test_openai_in_node(chat_service, picture):
    folder = node_with("openai-node", "openai@6")
    (folder / "ask.mjs").write_text(NODE)
    said = json.loads(run(["node", "ask.mjs", chat_service.url, str(picture)], folder))
    assert "stream/gate" in said["models"]
    assert said["streamed"] == said["whole"]
    assert said["total"] > 0
    assert said["now"] > 0
    assert said["refused"] == ["BadRequestError", 400, "INVALID_REQUEST", "temperature"]


def test_litellm(chat_service, picture):
    python = python_with("litellm", "litellm")
    said = json.loads(
        run(
            [str(python), "-c", LITELLM, chat_service.url, str(picture)],
            variables={"LITELLM_LOCAL_MODEL_COST_MAP": "True"},
        ).splitlines()[-1]
    )
    assert said["streamed"] == said["whole"]
    assert said["past"] > said["now"] > 0
    assert "temperature" in said["refused"]


def test_langchain_openai(chat_service, picture):
    python = python_with("langchain-openai", "langchain-openai")
    said = json.loads(run([str(python), "-c", LANGCHAIN, chat_service.url, str(picture)]))
    assert said["streamed"] == said["whole"]
    assert said["past"] > said["now"] > 0
    assert said["dark"] in (True, False)


def test_llm(chat_service, picture, tmp_path):
    # given its file of further models
    python = python_with("llm", "llm")
    models = [
        {"model_id": name, "model_name": model, "api_base": chat_service.url, "vision": True}
        for name, model in (("nvila", "demo"), ("gate", "stream/gate"))
    ]
    (tmp_path / "extra-openai-models.yaml").write_text(json.dumps(models))  # JSON is YAML
    image = tmp_path / "picture.jpg"
    image.write_bytes(base64.b64decode(data_url().partition(",")[2]))
    llm = str(python.with_name("llm"))
    home = {"LLM_USER_PATH": str(tmp_path), "OPENAI_API_KEY": "unused"}
    # when
    camera = run([llm, "-m", "gate", "What is there?"], variables=home)
    asked = ["What is this?", "-a", str(image)]
    streamed = run([llm, "-m", "nvila", *asked], variables=home)
    whole = run([llm, "-m", "nvila", "--no-stream", *asked], variables=home)
    # then
    assert camera.strip()
    assert streamed.strip() == whole.strip() != ""
