"""Linear layers packed for a CPU compute the same products."""

import pytest
import torch
from torch import nn

from nvila_core.models import packed_linear
from nvila_core.models.packed_linear import PackedLinear, available, pack_linears

pytestmark = pytest.mark.skipif(not available(), reason="this PyTorch has no oneDNN")


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 24), (2, 24), (33, 24), (1, 7, 24), (0, 24)])
def test_the_product_is_the_same(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(24, 40, bias=bias)
    expected = linear(x := torch.randn(shape))
    model = nn.Sequential(linear)

    assert pack_linears(model) == 1

    assert isinstance(model[0], PackedLinear)
    with torch.inference_mode():
        torch.testing.assert_close(model(x), expected.detach())


def test_only_float32_linear_layers_on_a_cpu_are_replaced() -> None:
    class Own(nn.Linear):
        pass

    model = nn.ModuleDict(
        {
            "inner": nn.Sequential(nn.Linear(4, 4), nn.GELU()),
            "sixteen": nn.Linear(4, 4, dtype=torch.bfloat16),
            "own": Own(4, 4),
            "elsewhere": nn.Linear(4, 4, device="meta"),
        }
    )

    assert pack_linears(model) == 1
    assert pack_linears(model) == 0

    kinds = {name: type(module) for name, module in model.named_modules()}
    assert kinds["inner.0"] is PackedLinear
    assert (kinds["sixteen"], kinds["own"], kinds["elsewhere"]) == (nn.Linear, Own, nn.Linear)


def test_the_original_weights_are_freed() -> None:
    model = nn.Sequential(nn.Linear(4, 4))

    pack_linears(model)

    assert list(model.parameters()) == []


def test_without_the_operations_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_linear, "available", lambda: False)
    model = nn.Sequential(nn.Linear(4, 4))

    assert pack_linears(model) == 0

    assert type(model[0]) is nn.Linear


def test_the_check_draws_no_random_numbers() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)

    torch.manual_seed(3)
    available.__wrapped__()

    assert torch.equal(torch.rand(1), expected)
