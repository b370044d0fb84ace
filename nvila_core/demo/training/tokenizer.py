"""Train the tokenizer: Qwen2's byte-level BPE with merges learned from the world's sentences."""

import json
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from nvila_core.checkpoint.writer import TokenizerFiles
from nvila_core.demo.questions import all_sentences

QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "[BOS]",
    "[PAD]",
    "<vila/sentinel>",
    "<image>",
    "<vila/video>",
)
END_OF_TURN = "<|im_end|>"
SYSTEM = "You are a helpful assistant"
CHAT_TEMPLATE = (
    "{%- if messages[0].role != 'system' -%}"
    "{{ '<|im_start|>system\\n" + SYSTEM + "<|im_end|>\\n' }}"
    "{%- endif -%}"
    "{%- for message in messages if message.content is not none -%}"
    "{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)


def train_tokenizer(max_length: int = 4096) -> TokenizerFiles:
    """Train the tokenizer; its `model_max_length` is `max_length` positions."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4096,
        min_frequency=1,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    chat = f"system\n{SYSTEM}\nuser\nassistant\n"
    tokenizer.train_from_iterator([*all_sentences(), chat], trainer)
    model = json.loads(tokenizer.to_str())["model"]
    ids = {token: len(model["vocab"]) + i for i, token in enumerate(SPECIAL_TOKENS)}
    return TokenizerFiles(
        vocab=model["vocab"],
        merges=[(left, right) for left, right in model["merges"]],
        added_tokens=ids,
        config=_tokenizer_config(ids, max_length),
        special_tokens_map=_special_tokens_map(),
    )


def _plain(content: str) -> dict[str, Any]:
    flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
    return {"content": content, **flags}


def _special_tokens_map() -> dict[str, Any]:
    return {
        "additional_special_tokens": _additional(),
        "bos_token": _plain("[BOS]"),
        "eos_token": _plain(END_OF_TURN),
        "pad_token": _plain("[PAD]"),
    }


def _additional() -> list[str]:
    return [token for token in SPECIAL_TOKENS if token not in ("<|endoftext|>", "[BOS]", "[PAD]")]


def _tokenizer_config(ids: dict[str, int], max_length: int) -> dict[str, Any]:
    return {
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(i): {**_plain(token), "special": True} for token, i in ids.items()
        },
        "additional_special_tokens": _additional(),
        "bos_token": "[BOS]",
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": END_OF_TURN,
        "errors": "replace",
        "model_max_length": max_length,
        "pad_token": "[PAD]",
        "padding_side": "right",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
