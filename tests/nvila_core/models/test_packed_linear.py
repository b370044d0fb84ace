"""Linear layers packed for a CPU compute the same products."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from nvila_core.config import LanguageConfig
from nvila_core.models import packed_linear
from nvila_core.models.language_model import LanguageModel
from nvila_core.models.packed_linear import (
    TOLERANCES,
    PackedLinear,
    TransposedLinear,
    can_pack,
    pack_linears,
    round_up_rows,
)

pytestmark = pytest.mark.skipif(not can_pack(torch.float32), reason="this PyTorch has no oneDNN")
BOTH = pytest.mark.parametrize("dtype", TOLERANCES, ids=str)


@pytest.fixture
def nothing_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_linear, "MAX_TRANSPOSED", 0)


def need(dtype: torch.dtype) -> None:
    if not can_pack(dtype):
        pytest.skip(f"this processor has no AVX-512, which packed {dtype} needs")


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        (PackedLinear, torch.float32),
        (PackedLinear, torch.bfloat16),
        (TransposedLinear, torch.float32),
    ],
)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 24), (2, 24), (33, 24), (1, 7, 24), (0, 24)])
def test_the_product_is_the_same(
    shape: tuple[int, ...],
    bias: bool,
    kind: type[nn.Module],
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    need(dtype)
    if kind is PackedLinear:
        monkeypatch.setattr(packed_linear, "MAX_TRANSPOSED", 0)
    torch.manual_seed(0)
    linear = nn.Linear(24, 40, bias=bias, dtype=dtype)
    x = torch.randn(shape, dtype=dtype)
    bias_used = linear.bias.double() if bias else None
    expected = F.linear(x.double(), linear.weight.double(), bias_used)
    model = nn.Sequential(linear)

    assert pack_linears(model) == 1

    assert type(model[0]) is kind
    with torch.inference_mode():
        found = model(x)
    assert (found.dtype, found.shape) == (dtype, expected.shape)
    error = TOLERANCES[dtype]
    torch.testing.assert_close(found.double(), expected.detach(), rtol=error, atol=error)


def test_any_number_of_rows_is_multiplied_as_one_of_a_few() -> None:
    numbers = {rows: round_up_rows(rows) for rows in range(2049)}

    assert [numbers[rows] for rows in (0, 1, 15, 16, 17, 33, 127, 128)] == [
        *(0, 1, 15, 16, 18, 36, 128, 128)
    ]
    assert all(rows <= number <= rows * 9 / 8 for rows, number in numbers.items())
    assert all(round_up_rows(number) == number for number in numbers.values())
    assert len({number for rows, number in numbers.items() if 0 < rows <= 128}) == 40


@torch.inference_mode()
def test_logits_of_any_number_of_rows_are_those_of_one_of_a_few() -> None:
    class Products(TorchFunctionMode):
        """Notes the numbers of rows that are multiplied."""

        def __init__(self) -> None:
            super().__init__()
            self.rows: list[int] = []

        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if func is torch.Tensor.__matmul__ or func is torch.Tensor.matmul:
                self.rows.append(args[1].shape[1])
            return func(*args, **(kwargs or {}))

    # given a language model in bfloat16
    torch.manual_seed(3)
    config = LanguageConfig(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        hidden_act="silu",
        max_position_embeddings=128,
        rms_norm_eps=1e-5,
        rope_theta=500.0,
        tie_word_embeddings=True,
    )
    model = LanguageModel(config).to(torch.bfloat16)
    nn.init.normal_(model.embedding_table, std=32**-0.5)
    hidden = torch.randn(128, 32).to(torch.bfloat16)
    expected = hidden.double() @ model.embedding_table.double().T

    # when it draws from 1 to 128 rows
    with Products() as products:
        found = [model.logits(hidden[:rows], 40) for rows in range(1, 129)]

    # then few products are computed, and each row has its logits
    assert len(products.rows) == 128
    assert len(set(products.rows)) == 40
    for rows, logits in enumerate(found, 1):
        assert logits.shape == (rows, 40)
        torch.testing.assert_close(logits.double(), expected[:rows], rtol=2e-2, atol=2e-2)


@pytest.mark.usefixtures("nothing_is_small")
def test_only_linear_layers_on_a_cpu_in_a_dtype_of_onednn_are_replaced() -> None:
    class Own(nn.Linear):
        pass

    model = nn.ModuleDict(
        {
            "inner": nn.Sequential(nn.Linear(4, 4), nn.GELU()),
            "sixteen": nn.Linear(4, 4, dtype=torch.float16),
            "own": Own(4, 4),
            "elsewhere": nn.Linear(4, 4, device="meta"),
        }
    )

    assert pack_linears(model) == 1
    assert pack_linears(model) == 0

    kinds = {name: type(module) for name, module in model.named_modules()}
    assert kinds["inner.0"] is PackedLinear
    assert (kinds["sixteen"], kinds["own"], kinds["elsewhere"]) == (nn.Linear, Own, nn.Linear)


def test_small_weights_in_float32_are_transposed_and_others_packed() -> None:
    # Given layers of 2**19 weights and of a few more, and a small one in bfloat16
    wide = nn.Linear(1024, 513, device="meta").to_empty(device="cpu")
    square = nn.Linear(1024, 512, device="meta").to_empty(device="cpu")
    model = nn.ModuleList([square, wide])
    half = nn.ModuleList([nn.Linear(8, 8, dtype=torch.bfloat16)])

    # When
    pack_linears(model)
    packed = pack_linears(half)

    # Then
    assert [type(layer) for layer in model] == [TransposedLinear, PackedLinear]
    assert type(half[0]) is (PackedLinear if packed else nn.Linear)


@BOTH
def test_the_original_weights_are_freed(dtype: torch.dtype) -> None:
    need(dtype)
    model = nn.Sequential(nn.Linear(4, 4, dtype=dtype))

    pack_linears(model)

    assert list(model.parameters()) == []


@BOTH
def test_without_the_operations_nothing_changes(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    # Given a PyTorch, or a processor, that cannot pack the dtype
    monkeypatch.setattr(packed_linear, "can_pack", lambda dtype: False)
    model = nn.Sequential(nn.Linear(4, 4, dtype=dtype))

    # When the model is packed
    assert pack_linears(model) == 0

    # Then its layers stay, and compute
    assert type(model[0]) is nn.Linear
    assert model(torch.ones(2, 4, dtype=dtype)).isfinite().all()


@BOTH
def test_wrong_products_are_noticed(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    # Given operations that exist, but leave out the bias
    class Wrong:
        @staticmethod
        def _reorder_linear_weight(weight: torch.Tensor, rows: None) -> torch.Tensor:
            return weight

        @staticmethod
        def _linear_pointwise(x: torch.Tensor, weight: torch.Tensor, *_: object) -> torch.Tensor:
            return F.linear(x, weight)

    monkeypatch.setattr(packed_linear, "MKLDNN", Wrong)

    # Then the dtype counts as one that cannot be packed
    assert not can_pack.__wrapped__(dtype)


def test_the_check_draws_no_random_numbers() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)

    torch.manual_seed(3)
    can_pack.__wrapped__(torch.float32)

    assert torch.equal(torch.rand(1), expected)
