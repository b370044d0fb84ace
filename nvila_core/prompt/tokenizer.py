"""Convert text to token ids and back, with the chat template and the media tokens.

Control tokens in user text stay text. Some published tokenizers lack the media tokens; they are
added in the original's order, so no id is hard-coded. Source: nvila specification, sections 1.3
and 5.
"""

import json
import re
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import count, pairwise
from pathlib import Path

from tokenizers import Tokenizer as RawTokenizer
from tokenizers.decoders import ByteLevel

from nvila_core.errors import CheckpointError, PromptError, as_checkpoint_error, first_line
from nvila_core.json_fields import Fields
from nvila_core.prompt.chat_template import ChatTemplate, TemplateMessage
from nvila_core.prompt.tokenizer_files import read_tokenizer

SENTINEL_TOKEN, IMAGE_TOKEN, VIDEO_TOKEN = "<vila/sentinel>", "<image>", "<vila/video>"
PRIVATE_USE = (*range(0xE000, 0xF900), *range(0xF0000, 0xFFFFE))
QWEN2_TEMPLATE = (
    "{%- macro turn(role, text) -%}<|im_start|>{{ role }}\n{{ text }}<|im_end|>\n{%- endmacro -%}"
    "{%- if not messages or messages[0].role != 'system' -%}"
    "{{ turn('system', 'You are a helpful assistant') + '\n' }}{%- endif -%}"
    "{%- for m in messages -%}{%- if m.content is not none -%}"
    "{{ turn(m.role, m.content) + '\n' }}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)
"""The turn format that NVILA was trained with, for checkpoints without a template."""
BUILT_IN_TEMPLATES = {"qwen2": QWEN2_TEMPLATE}


class Tokenizer:
    """A checkpoint's tokenizer with its media tokens and stop tokens.

    Args:
        folder: folder with tokenizer_config.json, and tokenizer.json or vocab.json and merges.txt.
        template_name: `chat_template` of the top-level config.json; None: the tokenizer's own.
        template_folders: further folders that may have `{template_name}.jinja`.

    Raises:
        CheckpointError: a file is missing or malformed.
    """

    def __init__(
        self, folder: Path, template_name: str | None = None, template_folders: Iterable[Path] = ()
    ) -> None:
        self.folder = folder
        self.loaded = read_tokenizer(folder)
        with as_checkpoint_error(folder, "the tokenizer cannot be used"):
            self._set_up(template_name, (folder, *template_folders))

    def _set_up(self, template_name: str | None, folders: Iterable[Path]) -> None:
        """Add the media tokens and find the template and the stop tokens."""
        self.backend: RawTokenizer = self.loaded.backend
        in_files = {token.content for token in self.backend.get_added_tokens_decoder().values()}
        for token in (SENTINEL_TOKEN, IMAGE_TOKEN, VIDEO_TOKEN):
            if token not in in_files:
                self.backend.add_special_tokens([token])
        tokens = sorted(self.backend.get_added_tokens_decoder().items())
        added = {token.content: i for i, token in tokens}
        self.image_id, self.video_id = added[IMAGE_TOKEN], added[VIDEO_TOKEN]
        text = find_template(template_name, folders)
        if text is None:
            text = self.loaded.chat_template or QWEN2_TEMPLATE
        with as_checkpoint_error(self.folder, "the chat template does not work"):
            self.template = ChatTemplate(text, self.loaded.special_tokens)
        by_length = sorted(added, key=len, reverse=True)
        self.control_pattern = re.compile("|".join(re.escape(token) for token in by_length))
        self.control_ids = added
        self.control_names = {i: token for token, i in added.items()}
        self.special_ids = frozenset(i for i, token in tokens if token.special)
        """Ids that `decode` leaves out."""
        self.plain_backend = without_added_tokens(self.backend)
        self.is_byte_level = isinstance(self.backend.decoder, ByteLevel) and self.loaded.is_exact
        """Whether a text is the bytes of its tokens, one after another."""
        self.max_length = self.find_max_length()
        self.stop_ids = frozenset(self.find_stop_ids())
        self.num_embeddings = len(self)
        """Ids from here on have no embedding; the model sets this to the size of its table."""
        if not self.encode("\n"):
            raise CheckpointError(
                self.folder, "the tokenizer is damaged: it cannot encode a newline"
            )

    def __len__(self) -> int:
        return self.backend.get_vocab_size(with_added_tokens=True)

    def find_max_length(self) -> int | None:
        """Return `model_max_length` in positions, or None if the files have none."""
        fields = Fields({"model_max_length": self.loaded.max_length}, self.config_file)
        length = fields.number("model_max_length", low=1)
        return int(length) if length < 2**31 else None

    @property
    def config_file(self) -> str:
        """Path of tokenizer_config.json, for error messages."""
        return str(self.folder / "tokenizer_config.json")

    def render(
        self, messages: Sequence[TemplateMessage], *, add_generation_prompt: bool = True
    ) -> str:
        """Render a conversation with the chat template.

        Raises:
            PromptError: the template fails on this conversation.
        """
        try:
            return self.template.render(messages, add_generation_prompt=add_generation_prompt)
        except Exception as error:  # the template is a program of the checkpoint
            raise PromptError(
                f"The checkpoint's chat template rejects this conversation: {first_line(error)}."
            ) from error

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`; special tokens written in it become special tokens."""
        return self.backend.encode(text, add_special_tokens=False).ids

    def encode_escaped(self, text: str, escaper: "ControlTokenEscaper") -> list[int]:
        """Return the ids of rendered text, in which escaped control tokens become plain text."""
        if not escaper.used:
            return self.encode(text)
        ids: list[int] = []
        for piece in re.split(f"({self.control_pattern.pattern})", text):
            if piece in self.control_ids:
                ids.append(self.control_ids[piece])
            elif piece:
                ids += self.plain_backend.encode(
                    escaper.unescape(piece), add_special_tokens=False
                ).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of generated ids, without special tokens and not stripped."""
        return self.loaded.decode(list(ids))

    def token_bytes(self, token: int) -> bytes:
        """Return the exact bytes of a token, which need not be whole characters; b"" if unknown."""
        text = self.backend.id_to_token(token)
        if text is None or token in self.control_names:
            return (text or "").encode()
        letters = byte_of_letter()
        if all(letter in letters for letter in text):
            return bytes(letters[letter] for letter in text)
        return self.decode([token]).encode()  # not a byte-level BPE

    def find_stop_ids(self) -> set[int]:
        """Return the end-of-sequence token, and the token after an answer in the template."""
        eos = self.backend.token_to_id(self.loaded.special_tokens.get("eos_token", ""))
        stops = set() if eos is None else {eos}
        turns = [
            {"role": "user", "content": "question"},
            {"role": "assistant", "content": SENTINEL_TOKEN},
        ]
        try:
            ids = self.encode(self.render(turns, add_generation_prompt=False))
        except PromptError as error:
            raise CheckpointError(
                self.folder, f"the chat template does not work: {error}"
            ) from error
        sentinel = self.control_ids[SENTINEL_TOKEN]
        stops |= {after for token, after in pairwise(ids) if token == sentinel}
        if not stops:
            raise CheckpointError(
                self.config_file,
                "the tokenizer has no token that ends an answer",
                field="eos_token",
                expected="e.g. '<|im_end|>'",
            )
        return stops


class ControlTokenEscaper:
    """Replaces control tokens in user texts by placeholders, and restores them as plain text.

    A placeholder is a number between two private-use characters that occur in none of the texts.
    """

    def __init__(self, tokenizer: Tokenizer, texts: Iterable[str]) -> None:
        taken = set().union(*map(set, texts))
        self.mark = next(chr(code) for code in PRIVATE_USE if chr(code) not in taken)
        self.pattern, self.hidden = tokenizer.control_pattern, list[str]()

    @property
    def used(self) -> bool:
        """Whether any control token was replaced."""
        return bool(self.hidden)

    def escape(self, text: str) -> str:
        """Replace the control tokens of `text` by placeholders."""

        def hide(match: re.Match[str]) -> str:
            self.hidden.append(match[0])
            return f"{self.mark}{len(self.hidden) - 1}{self.mark}"

        return self.pattern.sub(hide, text)

    def unescape(self, text: str) -> str:
        """Replace the placeholders in `text` by the control tokens as text."""
        return re.sub(
            f"{self.mark}(\\d+){self.mark}", lambda match: self.hidden[int(match[1])], text
        )


@cache
def byte_of_letter() -> dict[str, int]:
    """Return the byte that each letter in the vocabulary of a byte-level BPE stands for.

    Printable Latin-1 characters stand for themselves, the other bytes for the characters from
    U+0100 on, in order: the mapping of GPT-2's tokenizer.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    substitutes = map(chr, count(0x100))
    return {chr(b) if b in printable else next(substitutes): b for b in range(256)}


def without_added_tokens(raw: RawTokenizer) -> RawTokenizer:
    """Return the same byte-level BPE tokenizer, but one that encodes special tokens as text."""
    state = json.loads(raw.to_str())
    state["added_tokens"] = []
    return RawTokenizer.from_str(json.dumps(state))


def find_template(name: str | None, folders: Iterable[Path]) -> str | None:
    """Return the text of template `name`, without indents and line ends as in the original.

    Raises:
        CheckpointError: the template is unknown or its name is malformed.
    """
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
        f"the template is unknown, so put {name}.jinja beside config.json",
        field="chat_template",
        expected=f"null or one of {sorted(BUILT_IN_TEMPLATES)}",
        found=name,
    )
