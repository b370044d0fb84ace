"""Visuals and questions to tensors.

All questions about one visual share its tokens: they lie one after another behind it, each at the
positions it would have alone, and an attention mask keeps them from seeing each other.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from nvila_core.demo.questions import QuestionAnswer, make_question
from nvila_core.demo.training.visuals import Form, Visual

MEDIA = -1
"""Stands for a visual token among token ids."""

_MARK = "@"
_WANTED = {
    "clip": ("caption", "direction", "direction change", "exists count colour"),
    "still": ("sign", "sign", "caption", "exists count colour"),
    "mixed": ("sign", "caption", "direction change", "exists count colour"),
    "flat": ("caption", "exists", "count", "colour", "exists count"),
}


class ChatEncoder:
    """Token ids of prompts in the checkpoint's chat format."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, tokens_per_tile: int) -> None:
        self._tokenizer, self._per_tile = tokenizer, tokens_per_tile
        chat = tokenizer.apply_chat_template(
            [{"role": "user", "content": _MARK}], add_generation_prompt=True, tokenize=False
        )
        self._before, self._after = str(chat).split(_MARK)
        self._image = tokenizer.convert_tokens_to_ids("<image>")
        self._newline = self.ids("\n")
        self._end = [tokenizer.eos_token_id]
        self.ids = cache(self.ids)  # type: ignore[method-assign]

    def ids(self, text: str) -> list[int]:
        """Plain tokens of a text."""
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def prefix(self, form: Form) -> list[int]:
        """Everything before the question, `MEDIA` for each visual token.

        Every tile ends with a newline's embedding.
        """
        expanded: list[int] = []
        for token in self.ids(self._before + form.media):
            expanded += (
                [MEDIA] * self._per_tile + self._newline if token == self._image else [token]
            )
        return expanded

    def question(self, text: str) -> list[int]:
        """A question and the opening of the answer."""
        return self.ids(text + self._after)

    def answer(self, text: str) -> list[int]:
        """An answer and the end of the turn."""
        return self.ids(text) + self._end


@dataclass
class Group:
    """Visuals of one form with their questions, padded to one length L."""

    name: str  # of the form
    ids: Tensor  # [B, L], MEDIA for visual tokens
    positions: Tensor  # [B, L]
    segments: Tensor  # [B, L]: 0 shared, 1.. a question each, -1 padding
    where: Tensor  # [N] flat positions whose next token is learned
    targets: Tensor  # [N]
    weights: Tensor  # [N]
    owners: Tensor  # [N]: which of `kinds`
    kinds: list[str]  # of each question
    tiles: Tensor  # uint8 [B * tiles, S, S, 3]
    learn: Tensor  # bool [B * tiles]
    keys: list[int]  # of the visuals
    labels: dict[str, Tensor]

    def to(self, device: torch.device) -> "Group":
        """The same on a device."""

        def moved(value: Any) -> Any:
            return value.to(device) if isinstance(value, Tensor) else value

        fields = {key: moved(value) for key, value in vars(self).items()}
        return Group(
            **fields | {"labels": {key: moved(value) for key, value in self.labels.items()}}
        )


def choose_questions(visual: Visual, count: int, rng: random.Random) -> list[QuestionAnswer]:
    """Up to `count` different questions that suit the visual's form."""
    name = visual.form.name
    chosen: list[QuestionAnswer] = []
    for kinds in _WANTED[name][:count]:
        question = make_question(visual.observation, rng.choice(kinds.split()), rng)
        question = question or make_question(visual.observation, "exists", rng)
        # The sign is too small here: a little practice gives an honest guess instead of nonsense.
        if name in ("clip", "flat") and rng.random() < 0.01:
            question = make_question(visual.observation, "sign", rng)
        if question and question.text not in {other.text for other in chosen}:
            chosen.append(question)
    return chosen


def collate(
    visuals: Sequence[Visual], encoder: ChatEncoder, questions: int, rng: random.Random
) -> Group:
    """One group of visuals of the same form."""
    prefix = encoder.prefix(visuals[0].form)
    rows: list[tuple[list[int], list[int], list[int]]] = []
    learned: list[tuple[int, int, int, float, int]] = []
    kinds: list[str] = []
    for row, visual in enumerate(visuals):
        ids, positions, segments = list(prefix), list(range(len(prefix))), [0] * len(prefix)
        for segment, question in enumerate(choose_questions(visual, questions, rng), start=1):
            asked, answer = encoder.question(question.text), encoder.answer(question.answer)
            # The last token of the answer predicts nothing, so it need not be there.
            text = asked + answer[:-1]
            first = len(ids) + len(asked) - 1
            weight = len(answer) ** -0.5
            learned += [
                (row, first + i, token, weight, len(kinds)) for i, token in enumerate(answer)
            ]
            kinds.append(question.kind)
            positions += range(len(prefix), len(prefix) + len(text))
            segments += [segment] * len(text)
            ids += text
        rows.append((ids, positions, segments))
    length = max(len(ids) for ids, _, _ in rows)

    def padded(column: int, value: int) -> Tensor:
        return torch.tensor([row[column] + [value] * (length - len(row[column])) for row in rows])

    return Group(
        name=visuals[0].form.name,
        ids=padded(0, 0),
        positions=padded(1, 0),
        segments=padded(2, -1),
        where=torch.tensor([row * length + column for row, column, _, _, _ in learned]),
        targets=torch.tensor([token for _, _, token, _, _ in learned]),
        weights=torch.tensor([weight for _, _, _, weight, _ in learned]),
        owners=torch.tensor([owner for _, _, _, _, owner in learned]),
        kinds=kinds,
        tiles=stack_tiles(visuals),
        learn=torch.from_numpy(np.concatenate([visual.learn for visual in visuals])),
        keys=[visual.key for visual in visuals],
        labels=stack_labels(visuals),
    )


def stack_tiles(visuals: Sequence[Visual]) -> Tensor:
    """All tiles, uint8 [n, S, S, 3]."""
    return torch.from_numpy(np.concatenate([visual.tiles for visual in visuals]))


def stack_labels(visuals: Sequence[Visual]) -> dict[str, Tensor]:
    """The labels of all tiles, by their names in `TileLabels`."""
    return {
        name: torch.from_numpy(np.concatenate([getattr(visual.labels, name) for visual in visuals]))
        for name in ("whole", "things", "offsets", "sign", "motion")
    }


def attention_mask(segments: Tensor) -> Tensor:
    """Mask to add, [B, 1, L, L]: earlier tokens of the shared part and of the own question."""
    length = segments.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=segments.device).tril()
    keys, queries = segments[:, None, :], segments[:, :, None]
    allowed = causal & ((keys == 0) | (keys == queries))
    return torch.zeros(allowed.shape, device=segments.device).masked_fill(~allowed, -1e9)[:, None]
