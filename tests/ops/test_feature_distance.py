"""The kernel of LPIPS's feature distance: its values in Triton's interpreter, its code for a Hopper card."""

from __future__ import annotations

import pytest

from tests.helpers.interpreter import interpreted


@pytest.mark.slow
def test_the_kernel_equals_torch() -> None:
    """Distances and gradients, in float32 and bfloat16, of channels that are and are not powers of two."""
    assert interpreted("feature_distance_values.py", seconds=120).strip() == "equal"


@pytest.mark.parametrize("channels", [64, 192, 512])
def test_the_kernel_compiles_for_a_hopper_card(channels: int) -> None:
    """Without a GPU, for features in bfloat16; little shared memory, so that many programs run at once."""
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget

    from lyra_ns.ops.lpips_triton import TILE, _feature_distance_kernel

    pointers = {
        "predicted": "*bf16",
        "target": "*bf16",
        "weights": "*fp32",
        "gradient": "*bf16",
        "parts": "*fp32",
    }
    block = triton.next_power_of_2(channels)
    constants = {
        "CHANNELS": channels,
        "CHANNEL_BLOCK": block,
        "PIXEL_BLOCK": TILE // block,
        "NEEDS_GRADIENT": True,
    }
    signature = {**pointers, "num_pixels": "i32", "share": "fp32", "eps": "fp32"}
    signature |= dict.fromkeys(constants, "constexpr")
    source = triton.compiler.ASTSource(_feature_distance_kernel, signature, constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32))
    assert compiled.metadata.shared < 32 * 1024
    assert "ptx" in compiled.asm
