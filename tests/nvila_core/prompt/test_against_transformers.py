"""Tokenizers and chat templates that are read here work as in transformers, the reference."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nvila_core.checkpoint.random_checkpoint import write_checkpoint
from nvila_core.demo import CHECKPOINT
from nvila_core.errors import CheckpointError, PromptError
from nvila_core.prompt.chat_template import ChatTemplate
from nvila_core.prompt.tokenizer import QWEN2_TEMPLATE, Tokenizer
from nvila_core.prompt.tokenizer_files import NAMED_TOKENS, LoadedTokenizer, read_tokenizer

SPECIAL = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<image>", "<vila/video>", "[PAD]"]
PIECES = [*SPECIAL, "'ll", "  ", "\r\n", "\u0301", "ﬁ", "Å", "日本", "🙂", "\x00", "1234", "  a"]
WORLD = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "<image>\nWhat is this?"},
    {"role": "assistant", "content": "A yard 🙂."},
    {"role": "user", "content": 'Who is there? {{ 7 * 6 }} "quoted" <b>'},
]


@pytest.fixture
def no_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail the test that asks transformers to read a tokenizer."""

    def refuse(*_: object, **__: object) -> None:
        pytest.fail("transformers was asked")

    monkeypatch.setattr("nvila_core.prompt.tokenizer_files._read_with_transformers", refuse)


def reference(folder: Path) -> Any:
    from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer

    kind: Any = PreTrainedTokenizerFast if (folder / "tokenizer.json").exists() else Qwen2Tokenizer
    return kind.from_pretrained(str(folder), local_files_only=True)


def state(backend: Any) -> dict[str, Any]:
    """Return everything that decides about ids; what adds tokens around a text is not used."""
    saved: dict[str, Any] = json.loads(backend.to_str())
    return {k: v for k, v in saved.items() if k not in ("post_processor", "truncation", "padding")}


def assert_equal(files: LoadedTokenizer, expected: Any) -> None:
    assert state(files.backend) == state(expected.backend_tokenizer)
    assert files.backend.encode_special_tokens == expected.backend_tokenizer.encode_special_tokens
    assert files.special_tokens == expected.special_tokens_map
    assert files.max_length == expected.model_max_length
    assert (files.chat_template or None) == (expected.chat_template or None)


def change(folder: Path, file: str, edit: Callable[[dict[str, Any]], object]) -> None:
    path = folder / file
    values = json.loads(path.read_text())
    edit(values)
    path.write_text(json.dumps(values))


@pytest.fixture
def copy(tiny_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder / "llm", tmp_path / "llm"))


@pytest.fixture
def serialized(copy: Path) -> Path:
    """Folder with tokenizer.json in place of vocab.json and merges.txt."""
    reference(copy).backend_tokenizer.save(str(copy / "tokenizer.json"))
    for name in ("vocab.json", "merges.txt", "added_tokens.json", "special_tokens_map.json"):
        (copy / name).unlink(missing_ok=True)
    return copy


@pytest.mark.usefixtures("no_transformers")
def test_every_checkpoint_here_is_read_without_transformers(golden: Path) -> None:
    folders = [CHECKPOINT / "llm", *sorted(golden.glob("checkpoints/*/llm"))]
    assert len(folders) > 3
    for folder in folders:
        assert_equal(read_tokenizer(folder), reference(folder))


def _without(*names: str) -> Callable[[dict[str, Any]], object]:
    return lambda config: [config.pop(name, None) for name in names]


@pytest.mark.usefixtures("no_transformers")
@pytest.mark.parametrize(
    "edit",
    [
        _without("eos_token", "pad_token", "unk_token"),  # Qwen2's own, where the file has none
        _without("additional_special_tokens"),
        _without("chat_template", "model_max_length", "clean_up_tokenization_spaces"),
        lambda config: config.update(eos_token=None, unk_token="<unknown>"),
        lambda config: config.update(add_prefix_space=True),
        lambda config: config.update(split_special_tokens=True),
        lambda config: config.update(clean_up_tokenization_spaces=True),
        lambda config: config.update(extra_special_tokens=["<one>", "<two>", "<image>"]),
        lambda config: config["added_tokens_decoder"].update(
            {"9999": {"content": "<far>", "lstrip": True, "rstrip": True, "special": False}}
        ),
        lambda config: config["added_tokens_decoder"].clear(),
    ],
)
@pytest.mark.parametrize("layout", ["copy", "serialized"])
def test_other_files_are_read_in_the_same_way(
    layout: str, edit: Callable[[dict[str, Any]], object], request: pytest.FixtureRequest
) -> None:
    # given a checkpoint with another tokenizer_config.json
    folder: Path = request.getfixturevalue(layout)
    change(folder, "tokenizer_config.json", edit)
    # when it is read, then everything that decides about ids is as in transformers
    assert_equal(read_tokenizer(folder), reference(folder))


@pytest.mark.usefixtures("no_transformers")
def test_files_without_a_config(serialized: Path) -> None:
    (serialized / "tokenizer_config.json").unlink()
    assert_equal(read_tokenizer(serialized), reference(serialized))


@pytest.mark.usefixtures("no_transformers")
def test_a_template_in_its_own_file_comes_first(copy: Path) -> None:
    (copy / "chat_template.jinja").write_text("{{ messages[0].content }}", encoding="utf-8")
    assert_equal(read_tokenizer(copy), reference(copy))


@pytest.mark.parametrize(
    "edit",
    [
        _without("added_tokens_decoder"),  # then added_tokens.json counts
        lambda config: config.update(boi_token="<image>"),
        lambda config: config.update(fix_mistral_regex=False),
        lambda config: config.update(eos_token={"__type": "AddedToken", "content": "<|im_end|>"}),
        lambda config: config.update(
            chat_template=[{"name": "default", "template": QWEN2_TEMPLATE}]
        ),
    ],
)
def test_what_is_not_known_here_is_read_by_transformers(
    copy: Path, edit: Callable[[dict[str, Any]], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a file with something that is not read here
    change(copy, "tokenizer_config.json", edit)
    # when the tokenizer is used
    tokenizer, expected = Tokenizer(copy), reference(copy)
    # then transformers has read it, with the same ids, stop tokens and prompts
    assert tokenizer.loaded.special_tokens == expected.special_tokens_map
    for text in PIECES:
        assert tokenizer.encode(text) == expected.encode(text, add_special_tokens=False)
    assert tokenizer.render(WORLD) == expected.apply_chat_template(
        WORLD, tokenize=False, add_generation_prompt=True
    )
    # and without transformers there is an error, so the paths are different ones
    monkeypatch.setattr(
        "nvila_core.prompt.tokenizer_files._read_with_transformers", lambda *_, **__: 1 / 0
    )
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        Tokenizer(copy)


texts = st.lists(st.sampled_from(PIECES) | st.text(max_size=12), max_size=12).map("".join)


@pytest.fixture(scope="module")
def pair() -> tuple[Tokenizer, Any]:
    """The demo's tokenizer, and transformers' for the same files."""
    return Tokenizer(CHECKPOINT / "llm"), reference(CHECKPOINT / "llm")


@given(text=texts)
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_random_texts(pair: tuple[Tokenizer, Any], text: str) -> None:
    tokenizer, expected = pair
    ids = expected.encode(text, add_special_tokens=False)
    assert tokenizer.encode(text) == ids
    assert tokenizer.decode(ids) == expected.decode(ids, skip_special_tokens=True)
    messages = [{"role": "user", "content": text}, *WORLD]
    assert tokenizer.render(messages) == expected.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )


def test_random_ids(pair: tuple[Tokenizer, Any]) -> None:
    # half characters and unknown ids too
    tokenizer, expected = pair
    draw = random.Random(7)
    for _ in range(300):
        ids = [draw.randrange(len(tokenizer) + 5) for _ in range(draw.randrange(12))]
        assert tokenizer.decode(ids) == expected.decode(ids, skip_special_tokens=True)


def test_recorded_prompts(golden: Path) -> None:
    # given the rendered prompts of the recordings, and the texts of their users
    cases = json.loads((golden / "manifest.json").read_text())["cases"]
    recorded = json.loads((golden / "units/tokenization.json").read_text())
    rows = [row for group in recorded.values() for row in group["rows"]]
    texts = [case["chat_text"] for case in cases.values()]
    texts += [row["user_text"] for row in rows if "user_text" in row]
    assert len(cases) > 3
    assert len(rows) > 3
    for folder in sorted(golden.glob("checkpoints/*/llm")):
        tokenizer, expected = Tokenizer(folder), reference(folder)
        for text in texts:
            # then their ids and the conversation around them are those of transformers
            assert tokenizer.encode(text) == expected.encode(text, add_special_tokens=False)
            messages = [{"role": "user", "content": text}]
            assert tokenizer.render(messages) == expected.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )


@pytest.mark.parametrize(
    "template",
    [
        QWEN2_TEMPLATE,
        "{% for m in messages %}\n  {% if loop.last %}\n{{ m.content }}{% endif %}\n{% endfor %}\n",
        "{{ messages[1] | tojson }} {{ messages | tojson(indent=2, sort_keys=true) }}",
        "{{ bos_token }}{{ eos_token }}{{ unk_token is defined }}{{ cls_token }}",
        "{{ tools is none }}{{ documents is none }}{{ tools is defined }}",
        "{{ messages | length }}{{ add_generation_prompt }}",
        "{% set seen = namespace(count=0, self=1) %}"
        "{% for m in messages %}{% set seen.count = seen.count + 1 %}{% endfor %}{{ seen.count }}",
        "{% for m in messages %}{% if loop.last %}{% break %}{% endif %}{{ m.role }}{% endfor %}",
        "{% for m in messages %}{% generation %}{% set a = 1 %}{{ m.content }}{% endgeneration %}"
        "{{ a is defined }}{% endfor %}",
        "{{ dict(a=1, b='x') }}{{ dict.fromkeys(['k'], 2) }}",
        "{{ messages[3].content | upper | trim | length }}{{ messages[0]['content'][:2] }}",
        "{{ 'a' ~ messages[0].content.split(' ')[1] }}{{ messages[3].content.strip('<b>') }}",
    ],
)
def test_templates(pair: tuple[Tokenizer, Any], template: str) -> None:
    _, expected = pair
    own = ChatTemplate(template, expected.special_tokens_map)
    for prompt in (False, True):
        assert own.render(WORLD, add_generation_prompt=prompt) == expected.apply_chat_template(
            WORLD, chat_template=template, tokenize=False, add_generation_prompt=prompt
        )


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='x') }}",
        "{{ messages[0].content.format_map({}) }}{{ ''.__class__ }}{{ ''.__class__.__mro__[0] }}",
        "{% set n = namespace(_x=1) %}",
        "{% set n = namespace() %}{% set n._x = 1 %}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ dict.__class__.__mro__[1] }}",
        "{{ raise_exception.__globals__['json'] }}",
        "{{ strftime_now.__globals__['json'] }}",
        "{{ nothing.at.all }}",
        "{% include 'x' %}",
        "{{ range(10 ** 9) | list }}",
    ],
)
def test_templates_that_transformers_refuses(pair: tuple[Tokenizer, Any], template: str) -> None:
    _, expected = pair
    with pytest.raises(Exception) as refused:  # noqa: PT011
        expected.apply_chat_template(WORLD, chat_template=template, tokenize=False)
    with pytest.raises(type(refused.value)):
        ChatTemplate(template, {}).render(WORLD, add_generation_prompt=True)


def test_a_template_sees_plain_texts(pair: tuple[Tokenizer, Any]) -> None:
    class Odd(str):
        __slots__ = ()

        def shout(self) -> str:
            return "methods of the caller"

    messages = [{"role": "user", "content": Odd("hi")}]
    template = "{{ messages[0].content.shout is defined }}{{ messages[0].content }}"
    assert ChatTemplate(template, {}).render(messages, add_generation_prompt=True) == "Falsehi"


def test_the_error_of_a_template_names_its_cause(tmp_path: Path) -> None:
    root = write_checkpoint(tmp_path / "strict")
    template = (
        "{% if messages | length > 2 %}{{ raise_exception('one question only') }}{% endif %}"
        "{{ messages[-1].content }}<|im_end|>"
    )
    change(root, "llm/tokenizer_config.json", lambda c: c.update(chat_template=template))
    with pytest.raises(PromptError, match="one question only"):
        Tokenizer(root / "llm").render(WORLD)


def test_named_tokens_are_those_of_transformers() -> None:
    from transformers import PreTrainedTokenizerFast

    assert sorted(NAMED_TOKENS) == sorted(PreTrainedTokenizerFast.SPECIAL_TOKENS_ATTRIBUTES)
