"""The SigLIP vision tower, up to the layer whose output the projector takes."""

import torch
from torch import Tensor, nn
from transformers import SiglipVisionConfig, SiglipVisionModel

from nvila_core.config import VisionConfig

MAX_TILES_PER_PASS = 16
"""Tiles in one pass through the tower, which bounds its memory."""


class VisionTower(nn.Module):
    """transformers' SigLIP: pixels [tiles, 3, S, S] to features [tiles, patches, C].

    Only the layers below the selected one exist: hidden_states[-2] needs neither the last layer nor
    the post-norm, so they are neither computed nor loaded.
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        settings = SiglipVisionConfig(
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.layers_run,
            num_attention_heads=config.num_heads,
            image_size=config.image_size,
            patch_size=config.patch_size,
            hidden_act=config.hidden_act,
            layer_norm_eps=config.layer_norm_eps,
            attention_dropout=0.0,
            vision_use_head=False,
        )
        settings._attn_implementation = "sdpa"
        model = SiglipVisionModel(settings)
        self.embeddings, self.encoder = model.embeddings, model.encoder

    @property
    def positions(self) -> Tensor:
        """The position embeddings [patches, C]; the tower computes in their dtype and device."""
        weight: Tensor = self.embeddings.position_embedding.weight
        return weight

    @torch.inference_mode()
    def forward(self, pixels: Tensor) -> Tensor:
        """Return features [tiles, patches, C] of float32 pixels [tiles, 3, S, S]."""
        if not len(pixels):
            return self.positions.new_empty((0, *self.positions.shape))
        features = []
        for part in pixels.split(MAX_TILES_PER_PASS):
            hidden = self.embeddings(part.to(self.positions.device, self.positions.dtype))
            features.append(self.encoder(inputs_embeds=hidden).last_hidden_state)
        return torch.cat(features)
