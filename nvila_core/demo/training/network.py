"""The network in training: tower without its unused last layer, projector, LLM, auxiliary heads."""

import torch
from torch import Tensor, nn
from transformers import Qwen2Config, Qwen2ForCausalLM, SiglipVisionConfig, SiglipVisionModel

from nvila_core.demo.training.batches import MEDIA_ID, Group, attention_mask
from nvila_core.demo.training.config import ModelShape
from nvila_core.demo.training.labels import DIGITS, MOTIONS, THINGS
from nvila_core.models.projector import build_projector


def siglip_config(shape: ModelShape, layers: int) -> SiglipVisionConfig:
    """Return the configuration of a tower with `layers` layers."""
    return SiglipVisionConfig(
        hidden_size=shape.vision_hidden,
        intermediate_size=shape.vision_intermediate,
        num_hidden_layers=layers,
        num_attention_heads=shape.vision_heads,
        image_size=shape.tile,
        patch_size=shape.patch,
        hidden_act="gelu_pytorch_tanh",
        vision_use_head=False,
        attn_implementation="eager",
    )


def qwen2_config(shape: ModelShape, vocab_size: int) -> Qwen2Config:
    """Return the configuration of the LLM."""
    return Qwen2Config(
        vocab_size=vocab_size,
        hidden_size=shape.llm_hidden,
        intermediate_size=shape.llm_intermediate,
        num_hidden_layers=shape.llm_layers,
        num_attention_heads=shape.llm_heads,
        num_key_value_heads=shape.llm_kv_heads,
        rope_theta=shape.rope_theta,
        max_position_embeddings=shape.max_positions,
        max_window_layers=shape.llm_layers,
        tie_word_embeddings=True,
        use_cache=False,
        attn_implementation="eager",
    )


_TOKEN_SCALE = 2.5
"""Root mean square of the visual tokens after whitening, similar to what the LLM's layers add."""


class AuxiliaryHead(nn.Module):
    """Predicts from every visual token which objects are there; used in training only."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden)
        self.things = nn.Linear(hidden, THINGS)
        self.offsets = nn.Linear(hidden, THINGS * 2)
        self.sign = nn.Linear(hidden, 1 + 2 * DIGITS)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits [.., THINGS], offsets [.., THINGS, 2] and logits of the sign [.., 21].

        Args:
            features: visual tokens [tiles, cells, hidden].
        """
        x = self.norm(features)
        return self.things(x), self.offsets(x).unflatten(-1, (THINGS, 2)), self.sign(x)


class MotionHead(nn.Module):
    """Predicts from the LLM's middle layer, at every visual token, how objects there have moved."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden)
        self.motion = nn.Linear(hidden, THINGS * len(MOTIONS))

    def forward(self, hidden: Tensor) -> Tensor:
        """Return logits [tiles, cells, THINGS, motions] of hidden states [tiles, cells, hidden]."""
        logits = self.motion(self.norm(hidden))
        return torch.unflatten(logits, -1, (THINGS, len(MOTIONS)))


class DemoNetwork(nn.Module):
    """All parts that are trained."""

    def __init__(self, shape: ModelShape, vocab_size: int) -> None:
        super().__init__()
        self.tower = SiglipVisionModel(siglip_config(shape, shape.vision_layers - 1))
        self.projector = build_projector(
            "mlp_downsample_3x3_fix", shape.vision_hidden, shape.llm_hidden
        )
        self.llm = Qwen2ForCausalLM(qwen2_config(shape, vocab_size))
        self.auxiliary = AuxiliaryHead(shape.llm_hidden)
        self.auxiliary_motion = MotionHead(shape.llm_hidden)

    def see(self, tiles: Tensor) -> Tensor:
        """Return visual tokens [n, cells, LLM width] of tiles uint8 [n, S, S, 3]."""
        pixels = (tiles.permute(0, 3, 1, 2).float() * (1 / 255) - 0.5) / 0.5
        hidden = self.tower.encoder(inputs_embeds=self.tower.embeddings(pixels)).last_hidden_state
        tokens: Tensor = self.projector(hidden)
        return tokens

    @torch.no_grad()
    def whiten(self, tiles: Tensor) -> None:
        """Whiten the visual tokens: give all their directions about the same variance.

        After the first stage, positions are encoded in directions with a hundredth of the largest
        variance, and the LLM would need thousands of steps to use them. Whitening is affine, so the
        projector's last layer takes it in.

        Args:
            tiles: uint8 [n, S, S, 3], from which the variances are estimated.
        """
        tokens = torch.cat([self.see(part) for part in tiles.split(100)]).flatten(0, 1).double()
        mean = tokens.mean(0)
        variances, directions = torch.linalg.eigh((tokens - mean).T.cov(correction=0))
        # The constant keeps directions that are weaker than the noise small.
        change = directions @ torch.diag((variances + 0.1).rsqrt()) @ directions.T
        change *= _TOKEN_SCALE / ((tokens - mean) @ change.T).square().mean().sqrt()
        last = self.projector.layers[-1]
        assert isinstance(last, nn.Linear)
        last.bias.copy_(change @ (last.bias.double() - mean))
        last.weight.copy_(change @ last.weight.double())

    def features(self, tiles: Tensor, learn: Tensor) -> tuple[Tensor, Tensor]:
        """Return visual tokens of all tiles [n, cells, hidden], and those of the `learn` tiles.

        Only the tokens of the `learn` tiles have gradients.
        """
        if not learn.any():
            with torch.no_grad():
                seen = self.see(tiles)
            return seen, seen[learn]
        learned = self.see(tiles[learn])
        if learn.all():
            return learned, learned
        with torch.no_grad():
            rest = self.see(tiles[~learn])
        everything = rest.new_empty(len(tiles), *rest.shape[1:])
        everything = everything.index_put((~learn,), rest).index_put((learn,), learned)
        return everything, learned

    def watch(self, group: Group, features: Tensor) -> Tensor:
        """Return the logits of `MotionHead`, computing only the lower half of the LLM.

        Args:
            group: visuals without questions or padding.
            features: visual tokens [tiles, cells, hidden].
        """
        embeds = self._spliced(group, features)
        model = self.llm.model
        rotary = model.rotary_emb(embeds, group.positions)
        mask = attention_mask(group.segments)
        for layer in model.layers[: len(model.layers) // 2]:
            embeds = layer(embeds, attention_mask=mask, position_embeddings=rotary)
        moved: Tensor = self.auxiliary_motion(embeds[group.ids == MEDIA_ID].view_as(features))
        return moved

    def _spliced(self, group: Group, features: Tensor) -> Tensor:
        embeds: Tensor = self.llm.get_input_embeddings()(group.ids.clamp(min=0))
        return embeds.index_put((group.ids == MEDIA_ID,), features.flatten(0, 1).to(embeds.dtype))

    def answer(self, group: Group, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits [N, vocab] at the positions `group.where`, and those of `MotionHead`."""
        output = self.llm.model(
            inputs_embeds=self._spliced(group, features),
            attention_mask=attention_mask(group.segments),
            position_ids=group.positions,
            use_cache=False,
            output_hidden_states=True,
        )
        logits: Tensor = self.llm.lm_head(output.last_hidden_state.flatten(0, 1)[group.where])
        middle = output.hidden_states[len(output.hidden_states) // 2]
        return logits, self.auxiliary_motion(middle[group.ids == MEDIA_ID].view_as(features))
