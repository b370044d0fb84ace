"""Tokenizers that lack the media tokens, templates, and the search for stop tokens."""

import json
from pathlib import Path

import pytest

from nvila_core import NVILA, CheckpointError
from nvila_core.checkpoint.random_checkpoint import Shape, write_checkpoint
from nvila_core.prompt.tokenizer import QWEN2_TEMPLATE, Tokenizer


def test_missing_media_tokens_are_added_in_the_published_order(tmp_path: Path) -> None:
    # given a tokenizer that ends at [PAD], and an embedding table without rows for more
    shape = Shape(vocab=256 + 5)
    model = NVILA.from_pretrained(write_checkpoint(tmp_path / "notok", shape, media_tokens=False))
    # then the three tokens follow, and are never generated
    added = model.tokenizer.control_ids
    assert [added[t] for t in ("<vila/sentinel>", "<image>", "<vila/video>")] == [261, 262, 263]
    prompt = model.prepare(["hello"])
    logits = model.logits(prompt)
    assert logits.shape == (prompt.num_tokens, 264)
    assert logits[:, 261:].max() == float("-inf")
    assert logits[:, :261].isfinite().all()


def test_table_with_more_rows_than_the_tokenizer(tmp_path: Path) -> None:
    model = NVILA.from_pretrained(write_checkpoint(tmp_path / "rows", Shape(vocab=300)))
    assert model.logits(model.prepare(["hello"])).shape[1] == len(model.tokenizer) == 264


def test_stop_token_is_found_in_the_template(tmp_path: Path) -> None:
    root = write_checkpoint(tmp_path / "stop")
    path = root / "llm/tokenizer_config.json"
    config = json.loads(path.read_text())
    config["eos_token"] = "<|endoftext|>"
    path.write_text(json.dumps(config))
    assert Tokenizer(root / "llm").stop_ids == {256, 258}


def test_named_template_beside_the_config(tmp_path: Path) -> None:
    root = write_checkpoint(tmp_path / "jinja", config={"chat_template": "mine"})
    with pytest.raises(CheckpointError, match=r"chat_template.*mine\.jinja"):
        NVILA.from_pretrained(root)
    # indents and line ends of the file are ignored
    (root / "mine.jinja").write_text(
        "{% for m in messages %}\n    {{ '[' + m['content'] + ']' + '<|im_end|>' }}\n{% endfor %}\n"
    )
    assert NVILA.from_pretrained(root).prepare(["hi"]).text == "[hi]<|im_end|>"


def test_tokenizer_without_a_template_gets_the_built_in_one(tmp_path: Path) -> None:
    root = write_checkpoint(tmp_path / "plain")
    path = root / "llm/tokenizer_config.json"
    config = json.loads(path.read_text())
    assert config.pop("chat_template") == QWEN2_TEMPLATE
    path.write_text(json.dumps(config))
    text = Tokenizer(root / "llm").render([{"role": "user", "content": "hi"}])
    assert text == (
        "<|im_start|>system\nYou are a helpful assistant<|im_end|>\n"
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_tokenizer_json_gives_the_same_ids(tiny_folder: Path, tmp_path: Path) -> None:
    first = Tokenizer(tiny_folder / "llm")
    first.backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_bytes(
        (tiny_folder / "llm/tokenizer_config.json").read_bytes()
    )
    second = Tokenizer(tmp_path)
    text = "naïve 日本 🙂\n\n<image> <|im_end|>"
    assert first.encode(text) == second.encode(text)
    assert first.stop_ids == second.stop_ids


@pytest.mark.parametrize(
    "template", ["{% for %}", "{{ nothing.at.all }}", "{{ raise_exception('no') }}"]
)
def test_broken_template(tmp_path: Path, template: str) -> None:
    root = write_checkpoint(tmp_path / "broken")
    path = root / "llm/tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": template}))
    with pytest.raises(CheckpointError, match="template"):
        NVILA.from_pretrained(root)


@pytest.mark.parametrize(
    "expression",
    [
        "''.__class__.__mro__[1].__subclasses__()",
        "cycler.__init__.__globals__.os.getcwd()",
        "self.__init__.__globals__",
        "lipsum.__globals__['os'].system('true')",
    ],
)
def test_a_template_runs_no_code(tmp_path: Path, expression: str) -> None:
    root = write_checkpoint(tmp_path / "attack")
    path = root / "llm/tokenizer_config.json"
    template = "{{ " + expression + " }}"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": template}))
    with pytest.raises(CheckpointError, match="template"):
        NVILA.from_pretrained(root)
