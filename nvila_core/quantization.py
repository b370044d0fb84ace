"""The names of the formats in which a model's weights can be stored. Imports no torch."""

from typing import Literal, get_args

Quantization = Literal["int8", "int4", "fp8", "fp8-vision"]
"""What `quantize` may be; `models.quantize.choose_precision` gives each network its format."""

QUANTIZATIONS: tuple[Quantization, ...] = get_args(Quantization)
