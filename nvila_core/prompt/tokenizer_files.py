"""Read a checkpoint's tokenizer from its files, as transformers does.

Importing transformers takes about a second, which is most of what a model worker's start takes
beside importing PyTorch. So the tokenizers of Qwen2, which NVILA has, are read here; for files
with anything that is not known here, transformers is asked.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, decoders, normalizers, pre_tokenizers
from tokenizers import Tokenizer as RawTokenizer
from tokenizers.models import BPE

from nvila_core.errors import CheckpointError, as_checkpoint_error
from nvila_core.json_fields import read_json

NAMED_TOKENS = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
NO_LIMIT = int(1e30)
"""What transformers takes for a `model_max_length` that is not set."""
QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""What Qwen2's tokenizer takes for one word: no token goes beyond it."""
QWEN2_TOKENS = dict.fromkeys(("eos_token", "unk_token", "pad_token"), "<|endoftext|>")
"""Named tokens of a Qwen2 tokenizer whose files name none."""

_CONFIG, _SERIALIZED = "tokenizer_config.json", "tokenizer.json"
_ADDED, _SPECIAL = "added_tokens.json", "special_tokens_map.json"
_VOCABULARY, _MERGES = "vocab.json", "merges.txt"

_KNOWN_FIELDS = {
    *NAMED_TOKENS,
    "add_prefix_space",
    "added_tokens_decoder",
    "additional_special_tokens",
    "chat_template",
    "clean_up_tokenization_spaces",
    "extra_special_tokens",
    "model_max_length",
    "split_special_tokens",
    # the rest changes neither the ids of a text, nor the text of ids, nor the template
    "add_bos_token",
    "add_eos_token",
    "backend",
    "errors",
    "is_local",
    "legacy",
    "local_files_only",
    "name_or_path",
    "padding_side",
    "tokenizer_class",
    "truncation_side",
    "use_fast",
}


@dataclass(frozen=True)
class LoadedTokenizer:
    """A tokenizer, and what its files say about it.

    Attributes:
        backend: converts texts to ids, with all added tokens.
        special_tokens: the named special tokens, by names as "eos_token".
        chat_template: the template in the files.
        max_length: `model_max_length` in positions, as stored.
        decode: returns the text of ids, without special tokens.
        is_exact: whether `decode` leaves blanks as they are.
    """

    backend: RawTokenizer
    special_tokens: Mapping[str, str]
    chat_template: str | None
    max_length: Any
    decode: Callable[[list[int]], str]
    is_exact: bool


def read_tokenizer(folder: Path) -> LoadedTokenizer:
    """Read the tokenizer in `folder`, without running code from the checkpoint.

    Raises:
        CheckpointError: a file is missing or malformed.
    """
    names = (_CONFIG, _ADDED, _SPECIAL, _SERIALIZED, _VOCABULARY)
    files = {name: read_json(folder / name) for name in names if (folder / name).exists()}
    if _SERIALIZED not in files:
        for name in (_VOCABULARY, _MERGES):
            if not (folder / name).exists():
                raise CheckpointError(folder / name, "the tokenizer's file is missing")
    with as_checkpoint_error(folder, "the tokenizer cannot be loaded"):
        if _is_known(folder, files):
            return _read(folder, files)
        return _read_with_transformers(folder, serialized=_SERIALIZED in files)


def _is_known(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> bool:
    """Return whether the files hold nothing that `_read` does not know."""
    config = files.get(_CONFIG, {})
    if "added_tokens_decoder" not in config and (_ADDED in files or _SPECIAL in files):
        return False  # these two count only without that field
    serialized = files.get(_SERIALIZED)
    if serialized is None:
        is_bpe = not any((folder / n).exists() for n in ("tokenizer.model", "tekken.json"))
    else:
        model = serialized.get("model")
        is_bpe = isinstance(model, dict) and model.get("type") == "BPE"
        is_bpe = is_bpe and serialized.get("padding") is None
    extra = _extra_tokens(config)
    return (
        is_bpe
        and config.keys() <= _KNOWN_FIELDS
        and all(isinstance(config.get(name), str | None) for name in NAMED_TOKENS)
        and isinstance(extra, list)
        and all(isinstance(token, str) for token in extra)
        and isinstance(config.get("chat_template"), str | None)
        and not (folder / "additional_chat_templates").exists()
    )


def _read(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> LoadedTokenizer:
    config = files.get(_CONFIG, {})
    named = {name: config[name] for name in NAMED_TOKENS if name in config}
    is_qwen2 = _SERIALIZED not in files
    if is_qwen2:
        named = QWEN2_TOKENS | named
        backend = _qwen2_tokenizer(folder, bool(config.get("add_prefix_space")))
    else:
        backend = RawTokenizer.from_file(str(folder / _SERIALIZED))
    special = {name: named[name] for name in NAMED_TOKENS if named.get(name) is not None}
    extra = _extra_tokens(config)
    stored = config.get("added_tokens_decoder") or {}
    in_order = sorted(stored.items(), key=lambda item: int(item[0]))
    _add_tokens(backend, [token for _, token in in_order], special.values(), extra)
    if is_qwen2:
        backend.add_tokens([AddedToken(text, special=True) for text in (*special.values(), *extra)])
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = bool(config.get("split_special_tokens"))
    template = config.get("chat_template")
    if (own := folder / "chat_template.jinja").exists():
        template = own.read_text(encoding="utf-8")
    length = config.get("model_max_length")
    return LoadedTokenizer(
        backend,
        special,
        template,
        NO_LIMIT if length is None else length,
        lambda ids: backend.decode(ids, skip_special_tokens=True),
        is_exact=True,
    )


def _extra_tokens(config: Mapping[str, Any]) -> Any:
    """Return the special tokens without names, as stored. The field's name changed in 2025."""
    return config.get("extra_special_tokens") or config.get("additional_special_tokens") or []


def _qwen2_tokenizer(folder: Path, add_prefix_space: bool) -> RawTokenizer:
    """Return Qwen2's byte-level BPE without added tokens."""
    vocabulary, merges = BPE.read_file(str(folder / _VOCABULARY), str(folder / _MERGES))
    backend = RawTokenizer(
        BPE(vocab=vocabulary, merges=merges, continuing_subword_prefix="", end_of_word_suffix="")
    )
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    return backend


def _add_tokens(
    backend: RawTokenizer,
    stored: Iterable[Mapping[str, Any]],
    special: Collection[str],
    extra: Iterable[str],
) -> None:
    """Add the tokens that no merge makes: those with properties first, then the rest by name."""
    tokens = [AddedToken(**token) for token in stored]
    for token in tokens:
        token.special = token.special or token.content in special
    known = {token.content for token in (*tokens, *backend.get_added_tokens_decoder().values())}
    for text in (*special, *extra):
        if text not in known:
            tokens.append(AddedToken(text, special=True))
    backend.add_tokens(tokens)


def _read_with_transformers(folder: Path, *, serialized: bool) -> LoadedTokenizer:
    from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer  # takes seconds

    kind: Any = PreTrainedTokenizerFast if serialized else Qwen2Tokenizer
    tokenizer = kind.from_pretrained(str(folder), local_files_only=True)
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    return LoadedTokenizer(
        tokenizer.backend_tokenizer,
        tokenizer.special_tokens_map,
        tokenizer.get_chat_template() if tokenizer.chat_template else None,
        tokenizer.model_max_length,
        lambda ids: str(tokenizer.decode(ids, skip_special_tokens=True)),
        is_exact=not tokenizer.clean_up_tokenization_spaces,
    )
