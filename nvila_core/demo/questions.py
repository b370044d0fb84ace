"""Make questions about a scene, and their correct answers."""

import random
from dataclasses import dataclass

from nvila_core.demo.world import (
    COLOURS,
    DIRECTIONS,
    KINDS,
    PLURALS,
    STILL,
    STYLES,
    Observation,
    Sighting,
)

CAPTION = (
    "Describe the scene.",
    "What is happening?",
    "What do you see?",
    "What is in the picture?",
)
COUNT = ("How many {things} are there?", "How many {things} do you see?", "Count the {things}.")
EXISTS = (
    "Is there a {thing}?",
    "Is there a {thing}? Answer yes or no.",
    "Do you see a {thing}?",
    "Is a {thing} visible?",
)
ANY_MOVING = ("Is anything moving?", "Does anything move?")
THING_MOVING = ("Is the {thing} moving?", "Does the {thing} move?")
COLOUR = (
    "What colour is the {thing}?",
    "What color is the {thing}?",
    "Which colour does the {thing} have?",
)
DIRECTION = (
    "Which way does the {thing} move?",
    "Which way is the {thing} moving?",
    "Where is the {thing} going?",
    "In which direction does the {thing} move?",
)
SIGN = ("What number is on the sign?", "Which number does the sign show?", "Read the sign.")
CHANGE = (
    "What changed?",
    "What changed between the first and the last frame?",
    "What is different in the last frame?",
)

QUESTION_KINDS = ("exists", "count", "colour", "direction", "caption", "change", "sign")
MOTION_KINDS = ("direction", "change")
"""Kinds that a single image cannot answer."""


@dataclass(frozen=True)
class QuestionAnswer:
    """A question and the only answer that counts as correct."""

    kind: str
    text: str
    answer: str


def caption(observation: Observation) -> str:
    """Return the caption: the objects in the last frame and, for a clip, their motion."""
    if not observation.seen:
        return f"An empty {observation.style}."
    return f"A {observation.style} with {', '.join(_described(seen) for seen in observation.seen)}."


def _described(sighting: Sighting) -> str:
    if sighting.motion is None:
        return f"a {sighting.name}"
    motion = "standing still" if sighting.motion == STILL else f"moving {sighting.motion}"
    return f"a {sighting.name} {motion}"


def changes(observation: Observation) -> str:
    """Return what differs between the first and the last frame of a clip, as a sentence."""
    if not observation.changes:
        return "Nothing changed."
    text = ", ".join(f"a {sighting.name} {sighting.change}" for sighting in observation.changes)
    return f"A{text[1:]}."


def make_question(observation: Observation, kind: str, rng: random.Random) -> QuestionAnswer | None:
    """Return a random question of a kind, or None if the observation does not allow one.

    Raises:
        ValueError: the kind is unknown.
    """
    if kind in MOTION_KINDS and observation.frames == 1:
        return None
    match kind:
        case "caption":
            return QuestionAnswer(kind, rng.choice(CAPTION), caption(observation))
        case "count":
            return _ask_count(observation, rng)
        case "exists":
            return _ask_exists(observation, rng)
        case "colour":
            return _ask_colour(observation, rng)
        case "direction":
            return _ask_direction(observation, rng)
        case "change":
            return QuestionAnswer(kind, rng.choice(CHANGE), changes(observation))
        case "sign":
            return QuestionAnswer(kind, rng.choice(SIGN), str(observation.sign_number))
    raise ValueError(f"Unknown kind of question {kind!r}: use one of {QUESTION_KINDS}.")


def _ask_count(observation: Observation, rng: random.Random) -> QuestionAnswer:
    if rng.random() < 0.3:
        things, number = "objects", len(observation.seen)
    else:
        present = [kind for kind in KINDS if observation.kinds[kind]]
        kind = rng.choice(present if present and rng.random() < 0.7 else KINDS)
        things, number = PLURALS[kind], len(observation.kinds[kind])
    return QuestionAnswer("count", rng.choice(COUNT).format(things=things), str(number))


def _ask_exists(observation: Observation, rng: random.Random) -> QuestionAnswer:
    yes = rng.random() < 0.5
    if observation.frames > 1 and rng.random() < 0.25:
        return _ask_moving(observation, rng)
    if rng.random() < 0.5:
        choices = [kind for kind in KINDS if bool(observation.kinds[kind]) == yes]
    else:
        names = {seen.name for seen in observation.seen}
        choices = sorted(names) if yes else _absent_names(observation, names, rng)
    if not choices:
        yes = not yes
        choices = [kind for kind in KINDS if bool(observation.kinds[kind]) == yes]
    text = rng.choice(EXISTS).format(thing=rng.choice(choices))
    return QuestionAnswer("exists", text, "yes" if yes else "no")


def _absent_names(observation: Observation, names: set[str], rng: random.Random) -> list[str]:
    every = [f"{colour} {kind}" for kind in KINDS for colour in COLOURS]
    # Half of the time a near miss: its colour or its kind is visible, but not both on one object.
    near = [
        name
        for name in every
        if any(
            name.split()[0] == seen.colour or name.split()[1] == seen.kind
            for seen in observation.seen
        )
    ]
    pool = near if near and rng.random() < 0.5 else every
    return [name for name in pool if name not in names]


def _ask_moving(observation: Observation, rng: random.Random) -> QuestionAnswer:
    named = _named(observation, rng)
    if named is None or rng.random() < 0.5:
        moves = any(seen.motion != STILL for seen in observation.seen)
        return QuestionAnswer("exists", rng.choice(ANY_MOVING), "yes" if moves else "no")
    thing, seen = named
    text = rng.choice(THING_MOVING).format(thing=thing)
    return QuestionAnswer("exists", text, "no" if seen.motion == STILL else "yes")


def _ask_colour(observation: Observation, rng: random.Random) -> QuestionAnswer | None:
    single = [kind for kind in KINDS if len(observation.kinds[kind]) == 1]
    if not single:
        return None
    kind = rng.choice(single)
    text = rng.choice(COLOUR).format(thing=kind)
    return QuestionAnswer("colour", text, observation.kinds[kind][0].colour)


def _ask_direction(observation: Observation, rng: random.Random) -> QuestionAnswer | None:
    named = _named(observation, rng)
    if named is None:
        return None
    thing, seen = named
    answer = "it stands still" if seen.motion == STILL else str(seen.motion)
    return QuestionAnswer("direction", rng.choice(DIRECTION).format(thing=thing), answer)


def _named(observation: Observation, rng: random.Random) -> tuple[str, Sighting] | None:
    """Choose a visible object and a unique name for it, which is its kind if that is unique."""
    if not observation.seen:
        return None
    seen = rng.choice(observation.seen)
    alone = len(observation.kinds[seen.kind]) == 1
    return (seen.kind if alone and rng.random() < 0.7 else seen.name), seen


def all_sentences() -> list[str]:
    """Return every wording once, so that a tokenizer can learn each word as one token."""
    things = [*KINDS, *(f"{colour} {kind}" for colour in COLOURS for kind in KINDS)]
    sentences = [
        *CAPTION,
        *ANY_MOVING,
        *SIGN,
        *CHANGE,
        "Nothing changed.",
        "it stands still",
        "yes",
        "no",
    ]
    for templates in (EXISTS, THING_MOVING, COLOUR, DIRECTION):
        sentences += [template.format(thing=thing) for template in templates for thing in things]
    for plural in (*PLURALS.values(), "objects"):
        sentences += [template.format(things=plural) for template in COUNT]
    motions = ["standing still", *(f"moving {direction}" for direction in DIRECTIONS)]
    ends = ["appeared", "disappeared", *(f"moved {direction}" for direction in DIRECTIONS)]
    for style in STYLES:
        sentences += [
            f"An empty {style}.",
            *(f"A {style} with a {thing}, a {thing}." for thing in things),
        ]
    sentences += [
        f"a {thing} {motion}, a {thing} {motion}." for thing in things for motion in motions
    ]
    sentences += [f"A {thing} {end}, a {thing} {end}." for thing in things for end in ends]
    sentences += [*COLOURS, *DIRECTIONS]
    return sentences
