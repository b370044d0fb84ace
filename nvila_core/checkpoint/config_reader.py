"""Read `ModelConfig` from a checkpoint's JSON files, with the published defaults.

Source of names and defaults: nvila specification, sections 1 and 2. Values that the original
overwrites at load (`hidden_size`, `mm_hidden_size`, `model_dtype`, `resume_path`) are not read.
"""

from nvila_core.config import (
    MAX_FRAMES,
    EncoderConfig,
    LanguageConfig,
    ModelConfig,
    VisionConfig,
    is_known_projector,
)
from nvila_core.errors import CheckpointError
from nvila_core.json_fields import Fields
from nvila_core.media.preprocess import Processor
from nvila_core.resolution.grids import Grid
from nvila_core.resolution.policy import MAX_TILES

MAX_LAYERS = 1024
PUBLISHED_ACTIVATIONS = frozenset({"silu", "gelu_pytorch_tanh"})


def read_vision(fields: Fields, select_layer: int) -> VisionConfig:
    """Read the vision tower's shape from `vision_tower/config.json` or `vision_config`."""
    # transformers omits fields that equal its own defaults, so these are SiglipVisionConfig's
    layers = fields.integer("num_hidden_layers", 12, high=MAX_LAYERS)
    hidden = fields.integer("hidden_size", 768, high=2**17)
    heads = fields.integer("num_attention_heads", 12, high=2**14)
    image, patch = fields.integer("image_size", 224, high=2**14), fields.integer("patch_size", 16)
    if hidden % heads:
        raise fields.error(
            "num_attention_heads",
            "the number of heads does not divide hidden_size",
            f"a divisor of {hidden}",
        )
    if patch > image:
        raise fields.error("patch_size", "a patch is larger than the image", f"at most {image}")
    if fields.integer("num_channels", 3) != 3:
        raise fields.error("num_channels", "only RGB towers are supported", 3)
    run = select_layer if select_layer >= 0 else layers + 1 + select_layer
    if not 0 <= run <= layers:
        raise CheckpointError(
            "config.json",
            "the vision tower has no such layer",
            field="mm_vision_select_layer",
            expected=f"{-layers - 1} to {layers}",
            found=select_layer,
        )
    return VisionConfig(
        hidden_size=hidden,
        intermediate_size=fields.integer("intermediate_size", 3072, high=2**19),
        num_layers=layers,
        num_heads=heads,
        image_size=image,
        patch_size=patch,
        layers_run=run,
        hidden_act=activation(fields, "gelu_pytorch_tanh"),
        layer_norm_eps=fields.number("layer_norm_eps", 1e-6),
    )


def activation(fields: Fields, default: str) -> str:
    """Return `hidden_act`, checked against the activations that transformers implements."""
    name = fields.string("hidden_act", default)
    if name in PUBLISHED_ACTIVATIONS:
        return name
    from nvila_core.models.activations import activation_function  # imports PyTorch

    try:
        activation_function(name)
    except KeyError:
        raise fields.error(
            "hidden_act", "the activation is unknown", "e.g. 'silu' or 'gelu_pytorch_tanh'"
        ) from None
    return name


def read_llm(fields: Fields) -> LanguageConfig:
    """Read and check the language model's fields from `llm/config.json` or `text_config`."""
    kind = fields.string("model_type", "qwen2")
    if kind != "qwen2":
        raise fields.error("model_type", "the language model is not supported", "'qwen2'")
    # transformers omits fields that equal its own defaults, so these are Qwen2Config's
    hidden = fields.integer("hidden_size", 4096, high=2**17)
    heads = fields.integer("num_attention_heads", 32, high=2**14)
    kv_heads = fields.integer("num_key_value_heads", heads, high=2**14)
    if hidden % heads:
        raise fields.error(
            "num_attention_heads",
            "the number of heads does not divide hidden_size",
            f"a divisor of {hidden}",
        )
    if heads % kv_heads:
        raise fields.error(
            "num_key_value_heads",
            "the number of key-value heads does not divide the number of heads",
            f"a divisor of {heads}",
        )
    if fields.raw("head_dim", hidden // heads) != hidden // heads or hidden // heads % 2:
        raise fields.error(
            "head_dim",
            "the head size is not supported",
            f"hidden_size / num_attention_heads = {hidden} / {heads}, an even number",
        )
    if fields.boolean("use_sliding_window", False):
        raise fields.error("use_sliding_window", "sliding windows are not supported", False)
    theta, factor = read_rope(fields)
    return LanguageConfig(
        vocab_size=fields.integer("vocab_size", 151936, high=2**24),
        hidden_size=hidden,
        intermediate_size=fields.integer("intermediate_size", 22016, high=2**19),
        num_hidden_layers=fields.integer("num_hidden_layers", 32, high=MAX_LAYERS),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        hidden_act=activation(fields, "silu"),
        max_position_embeddings=fields.integer("max_position_embeddings", 32768, high=2**24),
        rms_norm_eps=fields.number("rms_norm_eps", 1e-6),
        rope_theta=theta,
        rope_factor=factor,
        tie_word_embeddings=fields.boolean("tie_word_embeddings", False),
    )


def read_rope(fields: Fields) -> tuple[float, float]:
    """Return base and linear scaling factor of the rotary embedding.

    They stand in `rope_parameters`, or in the older `rope_theta` and `rope_scaling`.
    """
    nested = next((n for n in ("rope_parameters", "rope_scaling") if n in fields), None)
    rope = fields.child(nested) if nested else Fields({}, fields.file)
    theta = (rope if "rope_theta" in rope else fields).number("rope_theta", 10000.0, low=1.0)
    kind = rope.string("rope_type", rope.raw("type", "default"))
    if kind == "default":
        return theta, 1.0
    if kind != "linear":
        raise rope.error("rope_type", "the scaling is not supported", "'default' or 'linear'")
    return theta, rope.number("factor", low=1.0)


def read_processor(fields: Fields, image_size: int) -> Processor:
    """Read `preprocessor_config.json`.

    Its image size must equal the tower's, which has position embeddings for that size only.
    """
    size = fields.raw("crop_size", None) or fields.raw(
        "size", {"height": image_size, "width": image_size}
    )
    sides = list(size.values()) if isinstance(size, dict) else [size]
    if not sides or any(side != image_size for side in sides):
        raise fields.error(
            "size",
            "the image size differs from the vision tower's",
            f"{image_size}x{image_size}",
        )
    if not fields.boolean("do_resize", True):
        raise fields.error("do_resize", "images must be resized to the vision tower's size", True)

    def triple(name: str) -> tuple[float, float, float]:
        value = fields.raw(name, [0.5, 0.5, 0.5])
        if (
            not isinstance(value, list)
            or len(value) != 3
            or not all(isinstance(v, int | float) and abs(v) < 1e6 for v in value)
        ):
            raise fields.error(name, "the value is not three numbers", "three numbers: R, G and B")
        return (float(value[0]), float(value[1]), float(value[2]))

    mean, std = triple("image_mean"), triple("image_std")
    if not fields.boolean("do_normalize", True):
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if min(std) <= 0:
        raise fields.error(
            "image_std", "the standard deviation is not positive", "three positive numbers"
        )
    rescale = (
        fields.number("rescale_factor", 1 / 255) if fields.boolean("do_rescale", True) else 1.0
    )
    return Processor(image_size, mean, std, rescale, fields.integer("resample", 3, low=0, high=5))


def read_encoder(fields: Fields, name: str) -> EncoderConfig:
    """Read `image_encoder` or `video_encoder`: Basic by default, or TSP with its `pool_sizes`."""
    encoder = fields.child(name, {})
    kind = encoder.string("_target_", "Basic").rpartition(".")[2]

    def text(key: str, default: str | None) -> str | None:
        return encoder.string(key) if key in encoder else None if key in encoder.values else default

    start, end = text("start_tokens", None), text("end_tokens", "\n")
    if kind in ("Basic", "BasicImageEncoder", "BasicVideoEncoder"):
        return EncoderConfig(start, end)
    if kind != "TSPVideoEncoder" or name != "video_encoder":
        raise encoder.error(
            "_target_", "the encoder is not supported", "a Basic encoder or TSPVideoEncoder"
        )
    pools = encoder.raw("pool_sizes")
    if (
        not isinstance(pools, list)
        or not pools
        or not all(
            isinstance(pool, list)
            and len(pool) == 3
            and all(type(p) is int and p > 0 for p in pool)
            for pool in pools
        )
    ):
        raise encoder.error(
            "pool_sizes", "the pool sizes are malformed", "a list of [frames, rows, columns]"
        )
    sizes = tuple((p[0], p[1], p[2]) for p in pools)
    return EncoderConfig(start, end, text("sep_tokens", None), sizes)


def read_scales(fields: Fields, image_size: int) -> tuple[int, ...]:
    """Read `s2_scales` in pixels: multiples of the first one, which is the tile size."""
    value = fields.raw("s2_scales", "448,896,1344")
    try:
        scales = tuple(int(s) for s in (value.split(",") if isinstance(value, str) else value))
    except (TypeError, ValueError):
        scales = ()
    if (
        len(scales) not in range(1, 9)
        or scales[0] < 1
        or any(s % scales[0] or s // scales[0] > 16 for s in scales)
        or scales[0] != image_size
    ):
        raise fields.error(
            "s2_scales",
            "the scales are malformed",
            f"multiples of the tile size, e.g. '{image_size},{2 * image_size}'",
        )
    return scales


def read_grids(fields: Fields) -> tuple[Grid, ...]:
    """Read `tile_grids`, a list of [columns, rows]."""
    value = fields.raw("tile_grids", None) or []
    if not isinstance(value, list) or not all(
        isinstance(grid, list)
        and len(grid) == 2
        and all(type(side) is int and side > 0 for side in grid)
        and grid[0] * grid[1] <= MAX_TILES
        for grid in value
    ):
        raise fields.error("tile_grids", "the grids are malformed", "a list of [columns, rows]")
    return tuple((grid[0], grid[1]) for grid in value)


def read_model(
    top: Fields,
    llm: Fields,
    vision: Fields,
    processor: Fields,
    projector_type: str,
    *,
    context: int | None = None,
) -> ModelConfig:
    """Read the whole configuration from the parsed files of either layout.

    Args:
        top: the checkpoint's `config.json`.
        llm: `llm/config.json` or `text_config`.
        vision: `vision_tower/config.json` or `vision_config`.
        processor: `preprocessor_config.json`; may be empty.
        projector_type: e.g. "mlp_downsample_3x3_fix".
        context: `model_max_length` of the tokenizer in positions; None: not given.

    Raises:
        CheckpointError: a field is missing, malformed, or asks for an unsupported kind of model.
    """
    if not is_known_projector(projector_type):
        raise CheckpointError(
            top.file,
            "the projector is not supported",
            field="mm_projector_type",
            expected="e.g. 'mlp_downsample_3x3_fix'",
            found=projector_type,
        )
    for name in ("s2", "ps3"):
        if top.boolean(name, False):
            raise top.error(name, "this kind of model is not supported", False)
    if top.string("mm_vision_select_feature", "cls_patch") not in ("cls_patch", "cls_path", "full"):
        raise top.error(
            "mm_vision_select_feature",
            "the selection is not supported, as SigLIP has no class token",
            "'cls_patch'",
        )
    tower = read_vision(vision, top.integer("mm_vision_select_layer", -2, low=-MAX_LAYERS))
    language = read_llm(llm)
    mode = top.string("image_aspect_ratio", "dynamic")
    dynamic_s2 = mode == "dynamic_s2" or top.boolean("dynamic_s2", False)
    scales = read_scales(top, tower.image_size) if dynamic_s2 else ()
    min_tiles = top.integer("min_tiles", 1, high=MAX_TILES)
    limit = min(context or language.max_position_embeddings, language.max_position_embeddings)
    return ModelConfig(
        vision=tower,
        processor=read_processor(processor, tower.image_size),
        llm=language,
        max_model_len=limit,
        projector_type=projector_type,
        image_aspect_ratio=mode,
        min_tiles=min_tiles,
        max_tiles=top.integer("max_tiles", max(12, min_tiles), low=min_tiles, high=MAX_TILES),
        video_max_tiles=top.integer("video_max_tiles", 1, high=MAX_TILES),
        num_video_frames=top.integer("num_video_frames", 8, high=MAX_FRAMES),
        fps=top.number("fps", 0.0),
        s2_scales=scales,
        s2_resize_to=top.integer(
            "s2_resize_output_to_scale_idx", 0, low=-len(scales), high=max(0, len(scales) - 1)
        )
        if scales
        else 0,
        image_encoder=read_encoder(top, "image_encoder"),
        video_encoder=read_encoder(top, "video_encoder"),
        chat_template=top.string("chat_template") if "chat_template" in top else None,
        tile_grids=read_grids(top),
    )
