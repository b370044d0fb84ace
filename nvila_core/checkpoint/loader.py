"""Load checkpoints in the published layouts, which config.json distinguishes.

* three folders: `llm/`, `vision_tower/` and `mm_projector/`, each with its own config.json and
  weights;
* flat (Hugging Face native): one config.json with `text_config` and `vision_config`, and one set of
  weights whose names start with `llm.`, `vision_tower.` and `mm_projector.`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from nvila_core.checkpoint.config_reader import read_model
from nvila_core.checkpoint.weights import Weights
from nvila_core.config import DOWNSAMPLING, LanguageConfig, ModelConfig, VisionConfig
from nvila_core.errors import CheckpointError
from nvila_core.json_fields import Fields
from nvila_core.models.projector import Projector, build_projector
from nvila_core.models.quantize import Format, Precision
from nvila_core.prompt.tokenizer import Tokenizer

if TYPE_CHECKING:
    from nvila_core.models.language_model import LanguageModel
    from nvila_core.models.vision_tower import VisionTower

FLAT_TYPES = ("vila", "nvila_lite", "nvila")


@dataclass
class Checkpoint:
    """An open checkpoint: configuration, tokenizer, and an index of the weights."""

    root: Path
    config: ModelConfig
    tokenizer: Tokenizer
    llm: Weights
    vision: Weights
    projector: Weights

    @classmethod
    def open(cls, root: Path) -> "Checkpoint":
        """Read every file except the tensors.

        Raises:
            CheckpointError: a file is missing, malformed, or describes another kind of model.
        """
        top = Fields.read(root / "config.json")
        if "text_config" in top or "vision_config" in top:
            return open_flat(root, top)
        return open_folders(root, top)

    def load(
        self, dtype: torch.dtype, device: torch.device, precision: Precision | None = None
    ) -> "tuple[VisionTower, Projector, LanguageModel]":
        """Read the tensors and return the modules.

        Args:
            dtype: dtype to compute in.
            device: device of the modules.
            precision: formats of quantized weights; None: full precision.

        Raises:
            CheckpointError: the weights contradict the config.
        """
        kinds = precision or Precision()
        language = load_language(self.config.llm, self.llm, dtype, device, kinds.language)
        vision = load_vision(self.config.vision, self.vision, dtype, device, kinds.vision)
        width, hidden = self.config.projector_input, self.config.llm.hidden_size
        with torch.device("meta"):
            projector = build_projector(self.config.projector_type, width, hidden)
        self.projector.fill(projector, dtype, device, kind=kinds.projector)
        return vision, projector.eval(), language


def open_folders(root: Path, top: Fields) -> Checkpoint:
    """Open the three-folder layout."""
    architectures = top.raw("architectures", [])
    if architectures and not any(
        "llava" in str(a).lower() or "vila" in str(a).lower() for a in architectures
    ):
        raise top.error(
            "architectures", "this is not an NVILA checkpoint", "a name with 'llava' or 'vila'"
        )
    folders = {name: folder_of(root, top, name) for name in ("llm", "vision_tower", "mm_projector")}
    llm, vision, projector = (Fields.read(folder / "config.json") for folder in folders.values())
    tower = vision.string("model_type", "siglip_vision_model")
    if tower != "siglip_vision_model":
        raise vision.error(
            "model_type", "the vision tower is not supported", "'siglip_vision_model'"
        )
    preprocessor = Fields.read(folders["vision_tower"] / "preprocessor_config.json")
    kind = projector.string("mm_projector_type")
    name = top.string("chat_template") if "chat_template" in top else None
    tokenizer = Tokenizer(folders["llm"], name, (root,))
    config = read_model(top, llm, vision, preprocessor, kind, context=tokenizer.max_length)
    tower_weights = Weights.open(folders["vision_tower"])
    return Checkpoint(
        root,
        config,
        tokenizer,
        Weights.open(folders["llm"]),
        tower_weights.part("vision_model."),
        Weights.open(folders["mm_projector"]),
    )


def folder_of(root: Path, top: Fields, name: str) -> Path:
    """Return the folder of one component: its default name, or the path given in config.json."""
    given = top.raw(f"{name}_cfg", None)
    folder = root / (
        given if isinstance(given, str) and not given.lstrip().startswith("{") else name
    )
    if not folder.is_dir():
        raise CheckpointError(folder, "the folder is missing; download the checkpoint again")
    return folder


def open_flat(root: Path, top: Fields) -> Checkpoint:
    """Open the flat layout."""
    kind = top.string("model_type")
    if kind not in FLAT_TYPES:
        raise top.error("model_type", "this is not an NVILA checkpoint", f"one of {FLAT_TYPES}")
    llm, vision = top.child("text_config"), top.child("vision_config")
    path = root / "preprocessor_config.json"
    preprocessor = Fields.read(path) if path.exists() else Fields({}, str(path))
    weights = Weights.open(root)
    if not any(name.startswith("llm.") for name in weights.tensors):
        weights = weights.part("model.")
    tower = weights.part("vision_tower.")
    for prefix in ("vision_tower.", "vision_model."):
        tower = tower.part(prefix) if any(n.startswith(prefix) for n in tower.tensors) else tower
    projector = weights.part("mm_projector.")
    name = top.string("chat_template") if "chat_template" in top else None
    tokenizer = Tokenizer(root, name)
    if "tie_word_embeddings" not in llm:  # some published files have it at the top, some nowhere
        tied = top.boolean("tie_word_embeddings", "llm.lm_head.weight" not in weights)
        llm = Fields({**llm.values, "tie_word_embeddings": tied}, llm.file)
    projector_type = flat_projector(top, projector)
    if "image_aspect_ratio" not in top and is_s2(vision, projector_type, projector):
        top = Fields({**top.values, "image_aspect_ratio": "dynamic_s2"}, top.file)
    config = read_model(
        top, llm, vision, preprocessor, projector_type, context=tokenizer.max_length
    )
    return Checkpoint(root, config, tokenizer, weights.part("llm."), tower, projector)


def is_s2(vision: Fields, projector_type: str, weights: Weights) -> bool:
    """Return whether the projector's input is several scales wide, as with dynamic S2."""
    factor = DOWNSAMPLING.get(projector_type)
    if factor is None or "layers.1.weight" not in weights:
        return False
    return weights.shape("layers.1.weight") != (factor**2 * vision.integer("hidden_size", 768),)


def flat_projector(top: Fields, weights: Weights) -> str:
    """Return `mm_projector_type`, or infer it from the number of layers if the field is absent."""
    for name in ("mm_projector_type", "projector_type"):
        if name in top:
            return top.string(name)
    return "mlp_downsample_3x3_fix" if "layers.7.weight" in weights else "mlp_downsample_2x2_fix"


def load_language(
    config: LanguageConfig,
    weights: Weights,
    dtype: torch.dtype,
    device: torch.device,
    kind: Format | None = None,
) -> "LanguageModel":
    """Build the language model on the meta device and load its weights, so that memory holds them
    once.

    Args:
        config: configuration of the model.
        weights: the tensors.
        dtype: dtype to compute in.
        device: device of the model.
        kind: format of the linear layers; None: full precision.

    Raises:
        CheckpointError: the weights contradict the config.
    """
    from nvila_core.models.language_model import LanguageModel

    hidden, inner = config.hidden_size, config.intermediate_size
    weights.expect(
        "model.embed_tokens.weight", (config.vocab_size, hidden), "vocab_size and hidden_size"
    )
    weights.expect_count("model.layers.", config.num_hidden_layers, "num_hidden_layers")
    weights.expect("model.layers.0.mlp.gate_proj.weight", (inner, hidden), "intermediate_size")
    with torch.device("meta"):
        model = LanguageModel(config)
    unused = ["lm_head."] if config.tie_word_embeddings else []
    weights.fill(model, dtype, device, unused=unused, kind=kind)
    model.model.rotary_emb.to(device)
    return model.eval()


def load_vision(
    config: VisionConfig,
    weights: Weights,
    dtype: torch.dtype,
    device: torch.device,
    kind: Format | None = None,
) -> "VisionTower":
    """Build the vision tower on the meta device and load the weights of the layers in use.

    Args:
        config: configuration of the tower.
        weights: the tensors.
        dtype: dtype to compute in.
        device: device of the tower.
        kind: format of the linear layers; None: full precision.

    Raises:
        CheckpointError: the weights contradict the config.
    """
    from nvila_core.models.vision_tower import VisionTower

    first = "encoder.layers.0.mlp.fc1.weight"
    weights.expect(
        "embeddings.position_embedding.weight",
        (config.grid**2, config.hidden_size),
        "image_size, patch_size and hidden_size",
    )
    weights.expect_count("encoder.layers.", config.num_layers, "num_hidden_layers")
    weights.expect(first, (config.intermediate_size, config.hidden_size), "intermediate_size")
    with torch.device("meta"):
        tower = VisionTower(config)
    skipped = [f"encoder.layers.{i}." for i in range(config.layers_run, config.num_layers)]
    weights.fill(
        tower,
        dtype,
        device,
        unused=[*skipped, "post_layernorm.", "head.", "embeddings.position_ids"],
        kind=kind,
    )
    return tower.eval()
