"""Block hashes: equal for equal prefixes, different from the first difference on."""

from typing import Any

from nvila_core import NVILA
from nvila_core.engine.prefix_keys import BlockHashes, PromptLayout, hash_media, hash_tiles

SIZE = 8


def hashes_of(model: NVILA, parts: list[Any], generated: list[int] = []) -> list[bytes]:  # noqa: B006
    """Return the hashes of all full blocks of a prompt and of generated tokens."""
    prompt = model.prepare(parts)
    layout = PromptLayout(prompt, (model.tokenizer.image_id, model.tokenizer.video_id))
    hashes = BlockHashes(layout, hash_media(prompt, hash_tiles(prompt)), generated, SIZE)
    return hashes.first((len(layout.ids) + len(generated)) // SIZE)


def common(a: list[bytes], b: list[bytes]) -> int:
    """Return the number of blocks that two prompts share."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), len(a))


def test_the_layout_has_the_positions_of_the_spliced_prompt(tiny: NVILA, pictures: Any) -> None:
    prompt = tiny.prepare([pictures.image(), "between", pictures.image(300, 100), "end"])
    layout = PromptLayout(prompt, (tiny.tokenizer.image_id, tiny.tokenizer.video_id))
    assert len(layout.ids) == prompt.num_tokens == len(tiny.embed(prompt))
    assert sum(layout.ids < 0) == sum(media.positions for media in prompt.media)
    assert [span.index for span in layout.spans] == list(range(len(prompt.media)))
    assert all((layout.ids[span.start : span.end] < 0).all() for span in layout.spans)
    first = layout.spans[0]
    assert layout.overlapping(first.end, first.end) == []
    assert layout.overlapping(first.end - 1, first.end) == [first]


def test_questions_on_one_picture_share_its_blocks_only(tiny: NVILA, pictures: Any) -> None:
    picture = pictures.image(300, 200)
    a, b = hashes_of(tiny, [picture, "How many?"]), hashes_of(tiny, [picture, "What colour is it?"])
    prompt = tiny.prepare([picture, "How many?"])
    layout = PromptLayout(prompt, (tiny.tokenizer.image_id, tiny.tokenizer.video_id))
    assert 5 < layout.spans[-1].end // SIZE <= common(a, b) < len(a)
    assert common(a, a) == len(a)


def test_one_pixel_makes_another_picture(tiny: NVILA, pictures: Any) -> None:
    picture = pictures.image()
    other = picture.copy()
    other.putpixel(
        (100, 100), (0, 0, 0) if picture.getpixel((100, 100)) != (0, 0, 0) else (9, 9, 9)
    )
    a, b = hashes_of(tiny, [picture, "x"]), hashes_of(tiny, [other, "x"])
    layout = PromptLayout(tiny.prepare([picture, "x"]), (tiny.tokenizer.image_id,))
    assert common(a, b) == layout.spans[0].start // SIZE


def test_the_same_tiles_in_another_place_or_order_have_other_hashes(
    tiny: NVILA, pictures: Any
) -> None:
    a, b = pictures.image(), pictures.image()
    assert hashes_of(tiny, [a, b, "x"])[-1] != hashes_of(tiny, [b, a, "x"])[-1]
    assert hashes_of(tiny, ["x", a])[-1] != hashes_of(tiny, ["y", a])[-1]


def test_generated_tokens_are_part_of_the_hash(tiny: NVILA) -> None:
    a, b = hashes_of(tiny, ["x"], [5] * 20), hashes_of(tiny, ["x"], [5] * 19 + [6])
    assert len(a) == len(b) == (tiny.prepare(["x"]).num_tokens + 20) // SIZE
    assert a[:-2] == b[:-2]
    assert hashes_of(tiny, ["x"]) == a[: len(hashes_of(tiny, ["x"]))]
