"""8-bit matrices: how far they are off, which layers become one, and that moving them keeps their numbers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lyra_ns.gen3c.layers import EightBitLinear, rounded_rows, use_eight_bits, use_own_blocks
from tests.helpers.gen3c_speed_cases import guided, prepared, relative
from tests.helpers.small_gen3c import drawn, small_transformer


def linear(num_in: int = 64, num_out: int = 48, deviation: float = 0.01) -> nn.Linear:
    layer = nn.Linear(num_in, num_out, bias=False)
    layer.weight.data = drawn(num_out, num_in, seed=5) * deviation
    return layer


@pytest.mark.parametrize(("mode", "most"), [("store", 0.03), ("multiply", 0.045)])
@torch.no_grad()
def test_products_are_off_by_the_rounding(mode: str, most: float) -> None:
    """As 3 bits behind the point allow, for weights of any size: without scales small ones lose more."""
    tokens = drawn(2, 20, 64)
    for deviation in (1e-4, 0.01, 10.0):
        layer = linear(deviation=deviation)
        found = EightBitLinear(layer, mode)(tokens)  # type: ignore[arg-type]
        assert 0.005 < relative(found, layer(tokens)) < most
    unscaled = layer.weight / 1000
    assert relative(unscaled.to(torch.float8_e4m3fn).float(), unscaled) > 0.03
    few = EightBitLinear(layer, mode)(tokens[:, :1])  # type: ignore[arg-type]
    assert relative(few, layer(tokens[:, :1])) < 0.03


def test_rows_keep_their_own_scale() -> None:
    rows = drawn(3, 64) * torch.tensor([[1e-6], [1.0], [1e6]])
    rows8, scale = rounded_rows(rows)
    assert rows8.dtype == torch.float8_e4m3fn
    torch.testing.assert_close(rows8.float().abs().amax(1), torch.full((3,), 448.0))
    assert relative(rows8[0].float() * scale[0], rows[0]) < 0.03
    zeros, scale = rounded_rows(torch.zeros(2, 8))
    assert not (zeros.float() * scale).any()
    assert scale.isfinite().all()


def test_numbers_survive_conversion_and_copying() -> None:
    layer = EightBitLinear(linear(), "store")
    before = layer.weight8.clone(), layer.scale.clone()
    nn.Sequential(layer).to(torch.bfloat16)
    assert {name for name, _ in layer.named_parameters()} == {"weight8", "scale"}
    assert (layer.weight8.dtype, layer.scale.dtype) == (torch.float8_e4m3fn, torch.float32)
    assert torch.equal(layer.weight8.float(), before[0].float())
    assert torch.equal(layer.scale, before[1])
    assert layer(drawn(2, 64).bfloat16()).dtype == torch.bfloat16
    layer.to("meta")
    assert layer.weight8.device.type == "meta"
    with pytest.raises(ValueError, match="no bias"):
        EightBitLinear(nn.Linear(4, 4), "store")


@pytest.mark.parametrize("mode", ["store", "multiply"])
def test_the_network_changes_a_little(mode: str) -> None:
    transformer = prepared(use_own_blocks)
    saved = use_eight_bits(transformer, mode)  # type: ignore[arg-type]
    layers = [module for module in transformer.modules() if isinstance(module, EightBitLinear)]
    assert len(layers) == 2 * (4 + 4 + 2)
    assert saved == 3 * sum(layer.weight8.numel() for layer in layers)
    assert isinstance(transformer.transformer_blocks[0].norm1.linear_1, nn.Linear)
    assert 1e-4 < relative(guided(transformer), guided(small_transformer())) < 0.2
