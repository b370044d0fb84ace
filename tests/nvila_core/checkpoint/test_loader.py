"""All layouts load the same model; errors about damaged checkpoints name the damage."""

import json
import os
import shutil
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from nvila_core import NVILA, CheckpointError, NVILAError, SamplingParams
from nvila_core.checkpoint.random_checkpoint import Shape, write_checkpoint
from nvila_core.models.device import choose_dtype

Change = Callable[[Path], object]
PROJECTOR = "mm_projector/model.safetensors"
LLM = "llm/model.safetensors"
TOWER = "vision_tower/model.safetensors"


def answer(folder: Path, image: Image.Image) -> list[int]:
    model = NVILA.from_pretrained(folder)
    parts = [image, "What?"]
    return model.generate(parts, SamplingParams(max_tokens=8, ignore_eos=True)).token_ids


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("shard_bytes", [None, 50_000])
@pytest.mark.parametrize("layout", ["folders", "vila", "nvila_lite", "nvila"])
def test_all_layouts_load_the_same_model(
    tmp_path: Path, pictures: Any, layout: Any, shard_bytes: int | None, tied: bool
) -> None:
    # given the same weights in the default layout and in another one
    plain = write_checkpoint(tmp_path / "plain", Shape(tied=tied))
    other = write_checkpoint(
        tmp_path / "other", Shape(tied=tied), layout=layout, shard_bytes=shard_bytes
    )
    assert shard_bytes is None or len(list(other.rglob("*.safetensors"))) > 3
    # then they give the same answer
    first, second = NVILA.from_pretrained(plain), NVILA.from_pretrained(other)
    image = pictures.image(200, 100)
    prompts = [model.prepare([image, "What?"]) for model in (first, second)]
    assert torch.equal(first.logits(prompts[0]), second.logits(prompts[1]))


def test_flat_dynamic_s2_is_detected_by_the_projectors_width(tmp_path: Path) -> None:
    # given a flat checkpoint whose config names neither the projector nor the mode
    shape = Shape(scales=3, projector="mlp_downsample")
    root = write_checkpoint(tmp_path / "flat", shape, layout="nvila")
    edit(root, "config.json", mm_projector_type=None, image_aspect_ratio=None, dynamic_s2=None)
    config = NVILA.from_pretrained(root).config
    assert (config.image_aspect_ratio, config.s2_scales) == ("dynamic_s2", (112, 224, 336))
    assert config.projector_type == "mlp_downsample_2x2_fix"


@pytest.mark.parametrize("tied", [True, False])
def test_flat_config_that_leaves_tying_out(tmp_path: Path, tied: bool) -> None:
    root = write_checkpoint(tmp_path / "flat", Shape(tied=tied), layout="nvila_lite")
    text = json.loads((root / "config.json").read_text())["text_config"]
    del text["tie_word_embeddings"]
    edit(root, "config.json", text_config=text)
    assert (NVILA.from_pretrained(root).language.lm_head is None) == tied


def test_components_may_lie_elsewhere(tmp_path: Path, tiny_folder: Path) -> None:
    root = tmp_path / "moved"
    shutil.copytree(tiny_folder, root)
    (root / "llm").rename(root / "language")
    edit(root, "config.json", llm_cfg="language")
    assert NVILA.from_pretrained(root).prepare(["x"]).token_ids


def test_stored_dtype_does_not_matter(tmp_path: Path, pictures: Any) -> None:
    half = write_checkpoint(tmp_path / "half")
    full = tmp_path / "full"
    shutil.copytree(half, full)
    for file in full.rglob("*.safetensors"):
        save_file(
            {k: v.double() if "norm" in k else v.float() for k, v in load_file(file).items()}, file
        )
    image = pictures.image(200, 100)
    assert answer(half, image) == answer(full, image)


def test_last_tower_layer_is_neither_needed_nor_loaded(tmp_path: Path, pictures: Any) -> None:
    # given a tower whose last layer and post-norm are not numbers
    root, image = write_checkpoint(tmp_path / "nan"), pictures.image(200, 100)
    expected = answer(root, image)
    tensors = load_file(root / TOWER)
    for name in tensors:
        if ".layers.2." in name or "post_layernorm" in name:
            tensors[name] = torch.full_like(tensors[name], float("nan"))
    save_file(tensors, root / TOWER)
    # then the answer is the same
    assert answer(root, image) == expected
    assert len(NVILA.from_pretrained(root).vision.encoder.layers) == 2
    # and the layer can also be selected by its number
    edit(root, "config.json", mm_vision_select_layer=2)
    assert answer(root, image) == expected


def test_auto_device_and_dtype(tiny_folder: Path) -> None:
    model = NVILA.from_pretrained(tiny_folder, device="auto", dtype="auto")
    assert model.device.type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert model.dtype == choose_dtype("auto", model.device)
    assert NVILA.from_pretrained(tiny_folder, dtype="bfloat16").dtype == torch.bfloat16
    for wrong in ({"device": "abacus"}, {"dtype": "int8"}, {"dtype": torch.int64}):
        with pytest.raises(NVILAError, match="use"):
            NVILA.from_pretrained(tiny_folder, **wrong)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_answers(tiny_folder: Path, pictures: Any, dtype: str) -> None:
    model = NVILA.from_pretrained(tiny_folder, dtype=dtype)
    prompt = model.prepare([pictures.image(), "x"])
    assert model.embed(prompt).dtype == model.dtype
    assert model.logits(prompt).dtype == torch.float32
    assert len(model.generate(prompt, SamplingParams(max_tokens=3, ignore_eos=True)).token_ids) == 3


def edit(root: Path, file: str, **fields: Any) -> None:
    """Replace fields of a JSON file; None removes a field."""
    path = root / file
    values = {**json.loads(path.read_text()), **fields}
    path.write_text(json.dumps({k: v for k, v in values.items() if v is not None}))


def editing(file: str, **fields: Any) -> Change:
    return lambda root: edit(root, file, **fields)


def removing(name: str) -> Change:
    def change(root: Path) -> None:
        path = root / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return change


def tensors(file: str, change: Callable[[dict[str, torch.Tensor]], Any]) -> Change:
    def apply(root: Path) -> None:
        values = load_file(root / file)
        change(values)
        save_file(values, root / file)

    return apply


def truncating(file: str) -> Change:
    return lambda root: os.truncate(root / file, (root / file).stat().st_size - 100)


DAMAGE: dict[str, tuple[Change, list[str]]] = {
    "no config": (removing("config.json"), ["config.json", "missing"]),
    "no llm": (removing("llm"), ["llm", "missing"]),
    "no llm config": (removing("llm/config.json"), ["llm/config.json", "missing"]),
    "no weights": (removing(PROJECTOR), [PROJECTOR, "missing"]),
    "no vocabulary": (removing("llm/vocab.json"), ["vocab.json", "missing"]),
    "no preprocessor": (
        removing("vision_tower/preprocessor_config.json"),
        ["preprocessor_config.json"],
    ),
    "truncated": (truncating(TOWER), [TOWER, "truncated"]),
    "not json": (lambda r: (r / "config.json").write_text("{") and None, ["config.json", "JSON"]),
    "json list": (
        lambda r: (r / "config.json").write_text("[]") and None,
        ["config.json", "object"],
    ),
    "not safetensors": (lambda r: (r / LLM).write_bytes(b"\x80\x04pickle") and None, [LLM]),
    "other architecture": (
        editing("config.json", architectures=["BertModel"]),
        ["architectures", "BertModel"],
    ),
    "other llm": (
        editing("llm/config.json", model_type="llama"),
        ["llm/config.json", "model_type", "llama"],
    ),
    "other tower": (
        editing("vision_tower/config.json", model_type="clip"),
        ["vision_tower/config.json", "clip"],
    ),
    "unknown projector": (
        editing("mm_projector/config.json", mm_projector_type="mlp_magic"),
        ["mm_projector_type", "mlp_magic"],
    ),
    "wrong projector": (
        editing("mm_projector/config.json", mm_projector_type="mlp_downsample"),
        [PROJECTOR, "layers."],
    ),
    "missing tensor": (
        tensors(PROJECTOR, lambda t: t.pop("layers.5.weight")),
        [PROJECTOR, "layers.5.weight", "missing"],
    ),
    "extra tensor": (
        tensors(PROJECTOR, lambda t: t.update({"layers.9.weight": torch.zeros(2)})),
        [PROJECTOR, "layers.9.weight"],
    ),
    "wrong shape": (
        tensors(LLM, lambda t: t.update({"model.norm.weight": torch.zeros(47)})),
        [LLM, "model.norm.weight", "[48]", "[47]"],
    ),
    "wrong dtype": (
        tensors(LLM, lambda t: t.update({"model.norm.weight": torch.zeros(48, dtype=torch.int8)})),
        [LLM, "model.norm.weight", "BF16", "I8"],
    ),
    "vocabulary contradicts": (
        editing("llm/config.json", vocab_size=999),
        ["vocab_size", "999", "264"],
    ),
    "width contradicts": (editing("llm/config.json", hidden_size=96), ["hidden_size", "96", "48"]),
    "too few layers": (
        editing("llm/config.json", num_hidden_layers=1),
        ["num_hidden_layers", "1 layers", "2 layers"],
    ),
    "too many layers": (
        editing("vision_tower/config.json", num_hidden_layers=9),
        ["num_hidden_layers", "9", "3"],
    ),
    "untied without a head": (
        editing("llm/config.json", tie_word_embeddings=False),
        ["lm_head.weight", "missing"],
    ),
    "heads": (editing("llm/config.json", num_attention_heads=5), ["num_attention_heads", "5"]),
    "activation": (editing("llm/config.json", hidden_act="wiggle"), ["hidden_act", "wiggle"]),
    "negative": (editing("llm/config.json", hidden_size=-1), ["hidden_size", "-1"]),
    "text for a number": (editing("llm/config.json", hidden_size="big"), ["hidden_size", "big"]),
    "picture size": (
        editing("vision_tower/preprocessor_config.json", size={"height": 224, "width": 224}),
        ["preprocessor_config.json", "size", "112", "224"],
    ),
    "select layer": (
        editing("config.json", mm_vision_select_layer=7),
        ["mm_vision_select_layer", "7"],
    ),
    "class token": (
        editing("config.json", mm_vision_select_feature="patch"),
        ["mm_vision_select_feature"],
    ),
    "tiles": (editing("config.json", min_tiles=5, max_tiles=3), ["max_tiles", "3"]),
    "endless tiles": (editing("config.json", max_tiles=10**9), ["max_tiles"]),
    "scales": (
        editing("config.json", dynamic_s2=True, s2_scales="112,113"),
        ["s2_scales", "112,113"],
    ),
    "encoder": (
        editing("config.json", video_encoder={"_target_": "x.Odd"}),
        ["video_encoder", "x.Odd"],
    ),
    "pools": (
        editing(
            "config.json", video_encoder={"_target_": "TSPVideoEncoder", "pool_sizes": [[0, 1]]}
        ),
        ["pool_sizes"],
    ),
    "sliding window": (editing("llm/config.json", use_sliding_window=True), ["use_sliding_window"]),
    "rope": (editing("llm/config.json", rope_scaling={"rope_type": "yarn"}), ["rope_type", "yarn"]),
    "vocabulary is no vocabulary": (
        lambda r: (r / "llm/vocab.json").write_text('{"a": "b"}') and None,
        ["llm", "tokenizer"],
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named(name: str, tmp_path: Path, tiny_folder: Path) -> None:
    # given a checkpoint with one defect
    root = tmp_path / "damaged"
    shutil.copytree(tiny_folder, root)
    change, words = DAMAGE[name]
    change(root)
    # when it is loaded, then the error is one line that names the file, the field and the values
    with pytest.raises(CheckpointError) as caught:
        NVILA.from_pretrained(root)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


def test_shards(tmp_path: Path) -> None:
    root = write_checkpoint(tmp_path / "sharded", shard_bytes=50_000)
    index = root / "llm/model.safetensors.index.json"
    first = json.loads(index.read_text())["weight_map"]["model.norm.weight"]
    (root / "llm" / first).unlink()
    with pytest.raises(CheckpointError, match=rf"{first}.*missing"):
        NVILA.from_pretrained(root)
    for evil in ("../mm_projector/model.safetensors", "/etc/passwd", "model.bin", 7):
        index.write_text(json.dumps({"weight_map": {"model.norm.weight": evil}}))
        with pytest.raises(CheckpointError, match=r"index\.json.*model\.norm\.weight"):
            NVILA.from_pretrained(root)


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.victim),)


@pytest.mark.parametrize("name", [PROJECTOR, "mm_projector/pytorch_model.bin"])
def test_pickles_are_never_loaded(tmp_path: Path, tiny_folder: Path, name: str) -> None:
    # given weights that run code when they are unpickled, as safetensors by their name too
    root, victim = tmp_path / "pickled", tmp_path / "victim"
    shutil.copytree(tiny_folder, root)
    (root / PROJECTOR).unlink()
    torch.save({"layers.5.weight": Bomb(victim)}, root / name)
    # when the checkpoint is loaded, then it is refused
    with pytest.raises(CheckpointError, match="pickled" if name.endswith(".bin") else name):
        NVILA.from_pretrained(root)
    assert not victim.exists()
    # and the bomb would have worked
    torch.load(BytesIO((root / name).read_bytes()), weights_only=False)
    assert victim.exists()


def test_where_there_is_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        NVILA.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="is a file"):
        NVILA.from_pretrained(__file__)
    with pytest.raises(CheckpointError, match="no such folder"):
        NVILA.from_pretrained("a/b/c")


def test_linear_rope_scaling_of_a_longer_context(
    tmp_path: Path, tiny_folder: Path, tiny: NVILA
) -> None:
    root = tmp_path / "long"
    shutil.copytree(tiny_folder, root)
    edit(root, "llm/config.json", rope_scaling={"type": "linear", "factor": 2.0})
    model = NVILA.from_pretrained(root)
    frequencies = [m.language.model.rotary_emb.inv_freq for m in (model, tiny)]
    torch.testing.assert_close(frequencies[0] * 2, frequencies[1])
