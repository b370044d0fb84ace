"""Convert visuals and questions to tensors.

All questions about one visual share its tokens. They follow it one after another, each at the
positions that it would have alone, and an attention mask keeps them from attending to each other.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from nvila_core.demo.questions import QuestionAnswer, make_question
from nvila_core.demo.training.visuals import Form, Visual

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MEDIA_ID = -1
"""Placeholder for a visual token among token ids."""

_MARK = "@"
_QUESTIONS_BY_FORM = {
    "clip": ("caption", "direction", "direction change", "exists count colour"),
    "still": ("sign", "sign", "caption", "exists count colour"),
    "mixed": ("sign", "caption", "direction change", "exists count colour"),
    "flat": ("caption", "exists", "count", "colour", "exists count"),
}


class ChatEncoder:
    """Encodes prompts in the checkpoint's chat format."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", tokens_per_tile: int) -> None:
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
        """Return the token ids of a text."""
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def prefix(self, form: Form) -> list[int]:
        """Return the ids of everything before the question, with `MEDIA_ID` for visual tokens.

        A newline follows every tile.
        """
        expanded: list[int] = []
        for token in self.ids(self._before + form.media):
            expanded += (
                [MEDIA_ID] * self._per_tile + self._newline if token == self._image else [token]
            )
        return expanded

    def question(self, text: str) -> list[int]:
        """Return the ids of a question and of the start of the assistant's turn."""
        return self.ids(text + self._after)

    def answer(self, text: str) -> list[int]:
        """Return the ids of an answer and of the end of the turn."""
        return self.ids(text) + self._end


@dataclass
class Group:
    """Visuals of one form with their questions, padded to the same length L.

    Attributes:
        name: name of the form.
        ids: [B, L]: token ids, `MEDIA_ID` for visual tokens.
        positions: [B, L]: positions in the LLM.
        segments: [B, L]: 0 for the shared part, from 1 on for each question, -1 for padding.
        where: [N]: indices into the flattened [B * L] of the tokens before the learned ones.
        targets: [N]: ids of the learned tokens.
        weights: [N]: weights of their losses.
        owners: [N]: index of their question in `kinds`.
        kinds: kind of each question.
        tiles: uint8 [B * tiles, S, S, 3].
        learn: bool [B * tiles]: tiles whose features get gradients.
        keys: keys of the visuals.
        labels: labels of all tiles, see `stack_labels`.
    """

    name: str
    ids: Tensor
    positions: Tensor
    segments: Tensor
    where: Tensor
    targets: Tensor
    weights: Tensor
    owners: Tensor
    kinds: list[str]
    tiles: Tensor
    learn: Tensor
    keys: list[int]
    labels: dict[str, Tensor]

    def to(self, device: torch.device) -> "Group":
        """Return a copy on a device."""

        def moved(value: Any) -> Any:
            return value.to(device) if isinstance(value, Tensor) else value

        fields = {key: moved(value) for key, value in vars(self).items()}
        return Group(
            **fields | {"labels": {key: moved(value) for key, value in self.labels.items()}}
        )


def choose_questions(visual: Visual, count: int, rng: random.Random) -> list[QuestionAnswer]:
    """Choose up to `count` different questions that suit the visual's form."""
    name = visual.form.name
    chosen: list[QuestionAnswer] = []
    for kinds in _QUESTIONS_BY_FORM[name][:count]:
        question = make_question(visual.observation, rng.choice(kinds.split()), rng)
        question = question or make_question(visual.observation, "exists", rng)
        # The sign is too small to read in these forms: a few examples teach to answer with a
        # number, a guess, instead of other words.
        if name in ("clip", "flat") and rng.random() < 0.01:
            question = make_question(visual.observation, "sign", rng)
        if question and question.text not in {other.text for other in chosen}:
            chosen.append(question)
    return chosen


def collate(
    visuals: Sequence[Visual], encoder: ChatEncoder, questions: int, rng: random.Random
) -> Group:
    """Make one group of visuals that have the same form, with up to `questions` questions each."""
    prefix = encoder.prefix(visuals[0].form)
    rows: list[tuple[list[int], list[int], list[int]]] = []
    learned: list[tuple[int, int, int, float, int]] = []
    kinds: list[str] = []
    for row, visual in enumerate(visuals):
        ids, positions, segments = list(prefix), list(range(len(prefix))), [0] * len(prefix)
        for segment, question in enumerate(choose_questions(visual, questions, rng), start=1):
            asked, answer = encoder.question(question.text), encoder.answer(question.answer)
            # The last token of the answer predicts nothing, so it is left out.
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
    """Return all tiles, uint8 [n, S, S, 3]."""
    return torch.from_numpy(np.concatenate([visual.tiles for visual in visuals]))


def stack_labels(visuals: Sequence[Visual]) -> dict[str, Tensor]:
    """Return the labels of all tiles by their names in `TileLabels`."""
    return {
        name: torch.from_numpy(np.concatenate([getattr(visual.labels, name) for visual in visuals]))
        for name in ("whole", "things", "offsets", "sign", "motion")
    }


def attention_mask(segments: Tensor) -> Tensor:
    """Return the additive attention mask [B, 1, L, L] for segments [B, L].

    A token attends to earlier tokens of the shared part and of its own question.
    """
    length = segments.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=segments.device).tril()
    keys, queries = segments[:, None, :], segments[:, :, None]
    allowed = causal & ((keys == 0) | (keys == queries))
    return torch.zeros(allowed.shape, device=segments.device).masked_fill(~allowed, -1e9)[:, None]
