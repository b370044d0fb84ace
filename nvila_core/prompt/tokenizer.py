"""Text to token ids and back: the chat template, the media tokens, and user text that stays text.

Tokenizer files may lack the media tokens; they are then added in the original's order, so ids are
never hard-coded. Source: nvila specification, sections 1.3 and 5.
"""

import json
import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as RawTokenizer

from nvila_core.errors import CheckpointError, PromptError, as_checkpoint_error, first_line
from nvila_core.json_fields import Fields, read_json

SENTINEL, IMAGE, VIDEO = "<vila/sentinel>", "<image>", "<vila/video>"
PRIVATE_USE = (*range(0xE000, 0xF900), *range(0xF0000, 0xFFFFE))
# The turn format that NVILA was trained with, for checkpoints that bring no template of their own.
QWEN2_TEMPLATE = (
    "{%- macro turn(role, text) -%}<|im_start|>{{ role }}\n{{ text }}<|im_end|>\n{%- endmacro -%}"
    "{%- if not messages or messages[0].role != 'system' -%}"
    "{{ turn('system', 'You are a helpful assistant') + '\n' }}{%- endif -%}"
    "{%- for m in messages -%}{%- if m.content is not none -%}"
    "{{ turn(m.role, m.content) + '\n' }}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)
BUILT_IN_TEMPLATES = {"qwen2": QWEN2_TEMPLATE}
Message = dict[str, str]


class Tokenizer:
    """A checkpoint's tokenizer with its media tokens and stop tokens.

    Args:
        folder: holds tokenizer.json, or vocab.json and merges.txt, and tokenizer_config.json.
        template_name: `chat_template` of the top-level config.json; null means the tokenizer's own.
        template_folders: where `{template_name}.jinja` may lie.
    """

    def __init__(
        self, folder: Path, template_name: str | None = None, template_folders: Iterable[Path] = ()
    ) -> None:
        self.folder = folder
        self.hf = load_tokenizer(folder)
        with as_checkpoint_error(folder, "the tokenizer cannot be used"):
            self.set_up(template_name, (folder, *template_folders))

    def set_up(self, template_name: str | None, folders: Iterable[Path]) -> None:
        """Add the media tokens and find the template and the stop tokens."""
        for token in (SENTINEL, IMAGE, VIDEO):
            if token not in self.hf.get_added_vocab():
                self.hf.add_tokens([token], special_tokens=True)
        added = self.hf.get_added_vocab()
        self.image_id, self.video_id = added[IMAGE], added[VIDEO]
        self.template = find_template(template_name, folders)
        if self.template is None and not self.hf.chat_template:
            self.template = QWEN2_TEMPLATE
        by_length = sorted(added, key=len, reverse=True)
        self.controls = re.compile("|".join(re.escape(token) for token in by_length))
        self.control_ids = added
        # encoding through `hf` sets its truncation each time, which two threads must not do at once
        self.raw: RawTokenizer = self.hf.backend_tokenizer
        self.raw.no_truncation()
        self.raw.no_padding()
        self.plain = without_added_tokens(self.raw)
        self.max_length = self.find_max_length()
        self.stop_ids = frozenset(self.find_stop_ids())
        self.rows = len(self.hf)  # ids from here on have no embedding, as the model may say
        if not self.encode("\n"):
            raise CheckpointError(self.folder, "the tokenizer knows no line end, so it is damaged")

    def __len__(self) -> int:
        return len(self.hf)

    def find_max_length(self) -> int | None:
        """`model_max_length` in positions, or None where the files do not say."""
        fields = Fields({"model_max_length": self.hf.model_max_length}, self.config_file)
        length = fields.number("model_max_length", low=1)
        return int(length) if length < 2**31 else None

    @property
    def config_file(self) -> str:
        """The tokenizer_config.json, for errors."""
        return str(self.folder / "tokenizer_config.json")

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """The conversation as the one string that the model was trained on."""
        try:
            text = self.hf.apply_chat_template(
                [dict(m) for m in messages],
                chat_template=self.template,
                add_generation_prompt=add_generation_prompt,
                tokenize=False,
            )
        except Exception as error:  # the template is a program that came with the checkpoint
            raise PromptError(
                f"The checkpoint's chat template refuses this conversation: {first_line(error)}."
            ) from error
        return str(text)

    def encode(self, text: str) -> list[int]:
        """Ids of `text`; special tokens written in it become the special tokens."""
        return self.raw.encode(text, add_special_tokens=False).ids

    def encode_shielded(self, text: str, shield: "Shield") -> list[int]:
        """Ids of rendered text in which `shield` marks what must stay ordinary text."""
        if not shield.used:
            return self.encode(text)
        ids: list[int] = []
        for piece in re.split(f"({self.controls.pattern})", text):
            if piece in self.control_ids:
                ids.append(self.control_ids[piece])
            elif piece:
                ids += self.plain.encode(shield.restore(piece), add_special_tokens=False).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of generated ids without special tokens, not stripped."""
        return str(self.hf.decode(list(ids), skip_special_tokens=True))

    def find_stop_ids(self) -> set[int]:
        """The end-of-sequence token and what follows an assistant's answer in the template."""
        stops = {self.hf.eos_token_id} if self.hf.eos_token_id is not None else set()
        turns = [
            {"role": "user", "content": "question"},
            {"role": "assistant", "content": SENTINEL},
        ]
        try:
            ids = self.encode(self.render(turns, add_generation_prompt=False))
        except PromptError as error:
            raise CheckpointError(
                self.folder, f"the chat template does not work: {error}"
            ) from error
        sentinel = self.control_ids[SENTINEL]
        stops |= {after for token, after in pairwise(ids) if token == sentinel}
        if not stops:
            raise CheckpointError(
                self.config_file,
                "no token ends an answer",
                field="eos_token",
                expected="e.g. '<|im_end|>'",
            )
        return stops


class Shield:
    """Hides control tokens written by a user behind a private character, and puts them back as
    text.
    """

    def __init__(self, tokenizer: Tokenizer, texts: Iterable[str]) -> None:
        taken = set().union(*map(set, texts))
        self.mark = next(chr(code) for code in PRIVATE_USE if chr(code) not in taken)
        self.pattern, self.hidden = tokenizer.controls, list[str]()

    @property
    def used(self) -> bool:
        """Whether anything had to be hidden."""
        return bool(self.hidden)

    def __call__(self, text: str) -> str:
        """`text` with its control tokens hidden."""

        def hide(match: re.Match[str]) -> str:
            self.hidden.append(match[0])
            return f"{self.mark}{len(self.hidden) - 1}{self.mark}"

        return self.pattern.sub(hide, text)

    def restore(self, text: str) -> str:
        """`text` with the hidden tokens written out again."""
        return re.sub(
            f"{self.mark}(\\d+){self.mark}", lambda match: self.hidden[int(match[1])], text
        )


def load_tokenizer(folder: Path) -> Any:
    """transformers' tokenizer of `folder`, without running any code that comes with it."""
    for name in (
        "tokenizer_config.json",
        "added_tokens.json",
        "special_tokens_map.json",
        "tokenizer.json",
        "vocab.json",
    ):
        if (folder / name).exists():
            read_json(folder / name)
    if not (folder / "tokenizer.json").exists():
        for name in ("vocab.json", "merges.txt"):
            if not (folder / name).exists():
                raise CheckpointError(folder / name, "the tokenizer's file is missing")
    from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer

    kind: Any = PreTrainedTokenizerFast if (folder / "tokenizer.json").exists() else Qwen2Tokenizer
    with as_checkpoint_error(folder, "the tokenizer cannot be loaded"):
        return kind.from_pretrained(str(folder), local_files_only=True)


def without_added_tokens(raw: RawTokenizer) -> RawTokenizer:
    """The same byte-level BPE, for which special tokens are ordinary text."""
    state = json.loads(raw.to_str())
    state["added_tokens"] = []
    return RawTokenizer.from_str(json.dumps(state))


def find_template(name: str | None, folders: Iterable[Path]) -> str | None:
    """The text of template `name`, with the original's clean-up of indents and line ends."""
    if name is None:
        return None
    if not re.fullmatch(r"[\w.-]+", name):
        raise CheckpointError(
            "config.json", "the template's name is malformed", field="chat_template", found=name
        )
    for folder in folders:
        path = folder / f"{name}.jinja"
        if path.is_file():
            return path.read_text(encoding="utf-8").replace("    ", "").replace("\n", "")
    if name in BUILT_IN_TEMPLATES:
        return BUILT_IN_TEMPLATES[name]
    raise CheckpointError(
        "config.json",
        f"put {name}.jinja beside it",
        field="chat_template",
        expected=f"null or one of {sorted(BUILT_IN_TEMPLATES)}",
        found=name,
    )
