"""Merged projections compute what separate ones do."""

from pathlib import Path

import pytest
import torch
from torch import nn

from nvila_core import NVILA
from nvila_core.models.merged import merge_projections
from nvila_core.models.quantize import Linear8


@pytest.mark.parametrize(("quantize", "kind"), [(None, nn.Linear), ("int8", Linear8)])
def test_merged_projections_compute_what_separate_ones_do(
    tiny_folder: Path, quantize: str | None, kind: type[nn.Module]
) -> None:
    # given a model whose projections are separate
    language = NVILA.from_pretrained(tiny_folder, quantize=quantize).language
    embeds = torch.randn(5, language.hidden_size)
    expected = language.hidden_states(embeds)
    # when they are merged, and asked to be once more, as by a second engine
    for _ in range(2):
        merge_projections(language.model)
    # then each layer has four products instead of seven, with the same results
    for layer in language.model.layers:
        names = {name for name, module in layer.named_modules() if isinstance(module, kind)}
        assert names == {
            "self_attn.qkv_proj",
            "self_attn.o_proj",
            "mlp.gate_up_proj",
            "mlp.down_proj",
        }
    torch.testing.assert_close(language.hidden_states(embeds), expected, rtol=1e-5, atol=1e-5)
