"""LPIPS with its gradient written out: its values in Triton's interpreter, its code for a Hopper card."""

from __future__ import annotations

import re

import lpips
import pytest
import torch

from tests.helpers.interpreter import interpreted


@pytest.mark.slow
def test_trunk_and_kernels_equal_autograd() -> None:
    """Odd sizes, ties, zeros, what is not a number; a narrow trunk in float32, whole and in parts."""
    assert interpreted("feature_trunk_values.py").strip() == "equal"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*weight:UserWarning")
def test_all_of_vgg_is_taken() -> None:
    """Convolutions of the package's network by block, with their widths."""
    pytest.importorskip("triton")
    from lyra_ns.ops.lpips_triton import FeatureTrunk

    trunk = FeatureTrunk(lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False), torch.bfloat16, 1e-10)
    widths = [[len(convolution.bias) for convolution in block] for block in trunk._blocks]
    assert widths == [[64] * 2, [128] * 2, [256] * 3, [512] * 3, [512] * 3]
    assert [len(head) for head in trunk._heads] == [64, 128, 256, 512, 512]


@pytest.mark.parametrize("channels", [64, 128, 256, 512])
@pytest.mark.parametrize(
    ("kernel", "loads"),
    [("rectify", 4), ("rectify_and_pool", 4), ("mask_gradient", 8), ("distance_and_gradient", 9)],
)
def test_kernels_compile_for_a_hopper_card(kernel: str, loads: int, channels: int) -> None:
    """Without a GPU, for maps in bfloat16: every access to them takes 16 bytes, with little shared memory."""
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget

    from lyra_ns.ops import lpips_triton

    function = getattr(lpips_triton, f"_{kernel}_kernel")
    constants = {
        "CHANNELS": channels,
        "PIXELS": lpips_triton.TILE // channels,
        "WINDOWS": lpips_triton._windows_of_program(channels),
        "IS_POOLED": True,
    }
    types = {"bias": "*fp32", "weights": "*fp32", "parts": "*fp32", "share": "fp32", "eps": "fp32"}
    types |= dict.fromkeys(("num_pixels", "height", "width"), "i32") | dict.fromkeys(constants, "constexpr")
    signature = {name: types.get(name, "*bf16") for name in function.arg_names}
    aligned = {
        (number,): [["tt.divisibility", 16]]
        for number, kind in enumerate(signature.values())
        if kind.startswith("*")
    }
    source = triton.compiler.ASTSource(
        function, signature, {name: constants[name] for name in signature if name in constants}, aligned
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32))
    assert compiled.metadata.shared <= 2048
    wide = re.findall(r"ld\.global\.\S*v4\.b32", compiled.asm["ptx"])
    assert len(wide) >= loads
    assert "b16" not in "".join(re.findall(r"(?:ld|st)\.global\S*", compiled.asm["ptx"]))
