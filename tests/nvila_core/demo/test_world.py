"""Scenes, their ground truth, and their rendering."""

import numpy as np
import pytest

from nvila_core.demo.render import render_clip
from nvila_core.demo.sampling import FIRST_EVALUATION_SEED, SIGN_SIZE, overlap, sample_scene
from nvila_core.demo.world import STILL, Actor, Light, Scene, Sign, observe

TIMES = (0.0, 1.0, 2.0, 3.0)


def scene_of(*actors: Actor) -> Scene:
    return Scene(1, "street", Sign(42, 0.5, 0.08), actors, Light(noise=0.0))


def test_the_same_seed_gives_the_same_frames() -> None:
    # given / when
    once = render_clip(sample_scene(5, TIMES), TIMES, (168, 126))
    again = render_clip(sample_scene(5, TIMES), TIMES, (168, 126))
    other = render_clip(sample_scene(6, TIMES), TIMES, (168, 126))

    # then
    assert all(np.array_equal(a, b) for a, b in zip(once, again, strict=True))
    assert not np.array_equal(once[0], other[0])
    assert once[0].shape == (126, 168, 3)
    assert once[0].dtype == np.uint8


def test_sampled_scenes_keep_the_rules_of_the_world() -> None:
    for seed in range(200):
        # given
        scene = sample_scene(seed, TIMES)

        # then: names are unique, no object hides another, the sign is inside one cell of the grid
        names = [(actor.kind, actor.colour) for actor in scene.actors]
        assert len(names) == len(set(names)) <= 4
        for t in TIMES:
            boxes = [actor.box(t) for actor in scene.actors]
            assert all(overlap(a, b) <= 0.1 for i, a in enumerate(boxes) for b in boxes[:i])
        left, right = scene.sign.x - SIGN_SIZE[0] / 2, scene.sign.x + SIGN_SIZE[0] / 2
        assert int(left * 8) == int(right * 8)
        assert 0 < scene.sign.y - SIGN_SIZE[1] / 2 < scene.sign.y + SIGN_SIZE[1] / 2 < 1 / 6
        assert 10 <= scene.sign.number <= 99


def test_digits_are_readable_when_tiled_and_not_in_one_tile() -> None:
    # given: two digits on the plate, with margins
    digit = SIGN_SIZE[0] / 2

    # then: pixels a digit at most, in a frame four tiles wide and in one tile
    assert digit * 4 * 84 > 14
    assert digit * 84 < 4


@pytest.mark.parametrize(
    ("path", "motion", "change"),
    [
        (((0, 0.5, 0.5),), STILL, None),
        (((0, 0.2, 0.5), (3, 0.5, 0.5)), "right", "moved right"),
        (((0, 0.5, 0.8), (3, 0.5, 0.5)), "away", "moved away"),
        (((0, 0.2, 0.5), (1.5, 0.5, 0.5)), STILL, "moved right"),
        (((0, -0.3, 0.5), (3, 0.3, 0.5)), "right", "appeared"),
    ],
)
def test_motion_is_that_of_the_last_step_and_change_that_of_the_whole_clip(
    path: tuple[tuple[float, float, float], ...], motion: str, change: str | None
) -> None:
    # given
    scene = scene_of(Actor("car", "red", 1.0, path))

    # when
    seen = observe(scene, TIMES).seen

    # then
    assert [(s.name, s.motion, s.change) for s in seen] == [("red car", motion, change)]


def test_an_object_that_left_is_a_change_but_is_not_seen() -> None:
    # given
    scene = scene_of(Actor("box", "blue", 1.0, ((0, 0.8, 0.5), (3, 1.3, 0.5))))

    # when
    observation = observe(scene, TIMES)

    # then
    assert observation.seen == ()
    assert [s.change for s in observation.changes] == ["disappeared"]


def test_a_still_says_nothing_of_motion() -> None:
    # given
    scene = scene_of(Actor("car", "red", 1.0, ((0, 0.2, 0.5), (3, 0.5, 0.5))))

    # when
    observation = observe(scene, TIMES[-1:])

    # then
    assert observation.seen[0].motion is None
    assert observation.changes == ()


def test_training_never_uses_evaluation_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    # given
    import random

    from nvila_core.demo.evaluate import held_out
    from nvila_core.demo.training import visuals

    trained: list[int] = []
    monkeypatch.setattr(
        visuals,
        "sample_scene",
        lambda seed, *rest: trained.append(seed) or sample_scene(seed, *rest),
    )

    # when
    for _ in range(20):
        visuals.render_visual(visuals.FLAT_FORM, random.Random(), 4)

    # then
    assert max(trained) < FIRST_EVALUATION_SEED
    with pytest.raises(AssertionError):
        next(held_out("clip", "count", 1, FIRST_EVALUATION_SEED - 1, 84))


def test_frames_can_be_larger_than_the_noise_bank() -> None:
    # given a scene / when it is rendered in 1080p
    frame = render_clip(sample_scene(5, TIMES), TIMES[:1], (1920, 1080))[0]
    # then the frame has that size
    assert frame.shape == (1080, 1920, 3)
    assert frame.std() > 5
