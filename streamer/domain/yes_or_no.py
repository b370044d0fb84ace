"""Yes and no as models spell them, and what an answer in any of these spellings means."""

from dataclasses import replace
from typing import TYPE_CHECKING

from streamer.alert_rule import ALERT_CHOICES
from streamer.response_format import ChoiceFormat

if TYPE_CHECKING:
    from nvila_core.generation.completion import Completion

YES, NO = ALERT_CHOICES

SPELLINGS = {"yes": YES, "no": NO, "Yes": YES, "No": NO}
"""What a model may write, and what it means. A model that prefers a spelling puts its probability
there: between two words that it would not write, what is left of it says little."""

SPELLED_FORMAT = ChoiceFormat(choices=list(SPELLINGS))
"""The format to which a model is held that answers yes or no."""

MIN_YES_NO_TOKENS = max(map(len, SPELLINGS)) + 1
"""Tokens that are enough for each spelling in any vocabulary, and for the end of the turn."""


def in_one_spelling(completion: "Completion") -> "Completion":
    """Return an answer in `SPELLED_FORMAT` as `yes` or `no`.

    The probability of each is the sum over its spellings, and the text is the more probable one,
    whichever spelling was drawn. An answer that was cut stays as it is.
    """
    if completion.text not in SPELLINGS:
        return completion
    spelled = completion.choice_probabilities
    if spelled is None:
        return replace(completion, text=SPELLINGS[completion.text])
    shares = dict.fromkeys(ALERT_CHOICES, 0.0)
    for spelling, probability in spelled.items():
        shares[SPELLINGS[spelling]] += probability
    text = YES if shares[YES] >= shares[NO] else NO
    return replace(completion, text=text, choice_probabilities=shares)
