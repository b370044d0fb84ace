"""Answer requests as the original does: transformers' Qwen2ForCausalLM, one at a time.

The pictures go through the same tower and projector, then through greedy
`generate(inputs_embeds=...)` with its cache. The weights are a copy of the engine's, so that
neither side is slowed down by the layout in which the other keeps them.
"""

from typing import Any

import torch
from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM
from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding

from nvila_core import NVILA
from nvila_core.config import LanguageConfig


def qwen2_config(config: LanguageConfig) -> Qwen2Config:
    """Return the configuration of transformers' Qwen2 for the same model."""
    fields = dict(vars(config))
    theta, factor = fields.pop("rope_theta"), fields.pop("rope_factor")
    rope = {"rope_type": "linear", "rope_theta": theta, "factor": factor}
    return Qwen2Config(**fields, rope_parameters=rope, attn_implementation="sdpa")


class Rival:
    """Answers requests as the published code does.

    Args:
        model: its weights are shared; it must not have been given to an engine.
    """

    def __init__(self, model: NVILA) -> None:
        self.model = model
        config = qwen2_config(model.language.config)
        with torch.device("meta"):
            self.llm = Qwen2ForCausalLM(config)
        self.llm.model.load_state_dict(model.language.model.state_dict(), assign=True)
        self.llm.model.rotary_emb = Qwen2RotaryEmbedding(config).to(model.device)
        head = model.language.lm_head
        table = model.language.model.embed_tokens.weight
        self.llm.lm_head.weight = table if head is None else head.weight
        self.llm.eval()

    @torch.inference_mode()
    def answer(self, parts: list[Any], tokens: int, **options: Any) -> list[int]:
        """Return exactly `tokens` ids in answer to `parts`; `options` go to `NVILA.prepare`."""
        prompt = self.model.prepare(parts, **options)
        embeds = self.model.embed(prompt)[None]
        config = GenerationConfig(
            max_new_tokens=tokens,
            do_sample=False,
            use_cache=True,
            eos_token_id=None,
            pad_token_id=0,
        )
        mask = torch.ones(embeds.shape[:2], dtype=torch.long, device=embeds.device)
        out = self.llm.generate(inputs_embeds=embeds, attention_mask=mask, generation_config=config)
        ids: list[int] = out[0].tolist()
        return ids
