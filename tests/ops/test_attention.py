"""Attention: which form runs when, and that our own kernel computes what float64 does."""

from __future__ import annotations

import importlib.util
import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from lyra_ns.decoder.blocks import Attention
from lyra_ns.decoder.config import DecoderConfig
from lyra_ns.decoder.model import LatentGaussianDecoder
from lyra_ns.ops import attention
from lyra_ns.ops.attention import AttentionName, choose_attention_backend, describe_attention_backend
from tests.helpers.interpreter import interpreted as run_interpreted

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is missing")


@pytest.fixture(scope="module")
def interpreted() -> dict[str, Any]:
    """Errors of the kernel in Triton's interpreter, by case."""
    return json.loads(run_interpreted("interpreted_attention.py", CUDA_VISIBLE_DEVICES=""))


ROUNDING = 2.0**-8
"""Relative error of one bfloat16, and so that of a sum of rounded weights at most."""

ORDINARY = (
    "whole",
    "rest",
    "short",
    "moved",
    "peaked",
    "no polynomial",
    "half polynomial",
    "plain sums",
    "in registers",
)
FAILED_BOUND = ("large", "far key", "huge key", "huge values")


@pytest.mark.slow
@needs_triton
@pytest.mark.parametrize("case", ORDINARY)
def test_kernel_equals_float64(interpreted: dict[str, Any], case: str) -> None:
    """Values as near as torch's own in bfloat16."""
    errors = interpreted[case]
    assert errors["kernel"] < 1.15 * errors["torch"]
    assert errors["logsumexp"] < (1e-4 if case == "plain sums" else ROUNDING)


@needs_triton
@pytest.mark.parametrize("case", FAILED_BOUND)
def test_rows_whose_bound_fails_are_exact(interpreted: dict[str, Any], case: str) -> None:
    """Where all weights vanish or overflow under the bound, the running maximum takes over."""
    errors = interpreted[case]
    assert errors["kernel"] < 1.05 * errors["torch"]
    assert errors["logsumexp"] < ROUNDING


@needs_triton
def test_kernel_gradients(interpreted: dict[str, Any]) -> None:
    """A backward pass from the saved output and log-sum-exp gives the gradients of float64."""
    assert max(interpreted["gradients"]) < 5e-3


@needs_triton
def test_kernel_with_broken_key(interpreted: dict[str, Any]) -> None:
    """NaN in a key reaches all rows of its head and no other head."""
    assert interpreted["not a number"] == [True, False]


@needs_triton
def test_kernel_with_other_layout(interpreted: dict[str, Any]) -> None:
    """Tensors that the copy engine cannot read are copied first."""
    assert interpreted["other layout"] < 5e-3


@needs_triton
def test_eight_bit_scores(interpreted: dict[str, Any]) -> None:
    """8-bit scores are near, visibly rounded, and do not mind an offset of all keys."""
    centred, offset = interpreted["eight bits"]
    assert 0.01 < centred < 0.06
    assert offset == pytest.approx(centred, rel=0.2)


@needs_triton
def test_kernel_refuses_other_tensors() -> None:
    """Other head sizes and dtypes are named with what to do."""
    from lyra_ns.ops.attention_triton import attend

    with pytest.raises(ValueError, match=r"\[B, N, H, 64\].*cudnn"):
        attend(*torch.zeros(3, 1, 8, 2, 32, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match=r"needs bfloat16, found torch\.float32"):
        attend(*torch.zeros(3, 1, 8, 2, 64))


@pytest.mark.slow
@needs_triton
def test_compiled_kernel_fits_two_programs_on_a_multiprocessor() -> None:
    """For Hopper the default tiles use its matrix units and leave shared memory for a second program."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from lyra_ns.ops.attention_kernels import attend_tile_kernel
    from lyra_ns.ops.attention_triton import AttentionTiles

    tiles = AttentionTiles()
    constants = {
        "BLOCK_QUERIES": tiles.queries,
        "BLOCK_KEYS": tiles.keys,
        "HEAD_DIM": 64,
        "SUM_COLUMNS": tiles.sum_columns,
        "QUARTERS": tiles.polynomial_quarters,
        "RUNNING_MAXIMUM": False,
        "HAS_REST": False,
        "QUERY_IN_REGISTERS": tiles.query_in_registers,
    }
    types = {"queries": f"tensordesc<bf16[1, {tiles.queries}, 64]>"}
    types |= dict.fromkeys(("keys", "values"), f"tensordesc<bf16[1, {tiles.keys}, 64]>")
    types |= dict.fromkeys(("score_scale", "key_centre", "key_radius", "logsumexp"), "*fp32")
    types |= {"out": "*bf16", "marked": "*i32", "num_tokens": "i32", "num_heads": "i32"}
    types |= dict.fromkeys(constants, "constexpr")
    source = ASTSource(
        attend_tile_kernel, {name: types[name] for name in attend_tile_kernel.arg_names}, constants
    )
    compiled = triton.compile(
        source,
        target=GPUTarget("cuda", 90, 32),
        options={"num_warps": tiles.num_warps, "num_stages": tiles.num_stages},
    )
    assert 2 * (compiled.metadata.shared + 1024) <= 228 * 1024
    ptx = compiled.asm["ptx"]
    assert "wgmma.mma_async" in ptx
    # Of the 64 exponentials of a thread and step, those that the polynomial does not take.
    assert ptx.count("ex2.approx") == 64 - 16 * tiles.polynomial_quarters


def manual(module: Attention, tokens: Tensor) -> Tensor:
    """The layer written out."""
    scenes, num_tokens, width = tokens.shape
    parts = module.qkv(tokens).view(scenes, num_tokens, 3, module.num_heads, -1)
    query, key, value = (parts[:, :, part].transpose(1, 2) for part in range(3))
    weights = (query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])).softmax(-1)
    return module.proj((weights @ value).transpose(1, 2).reshape(scenes, num_tokens, width))


@pytest.mark.parametrize("name", ["auto", "torch", "cudnn"])
@pytest.mark.parametrize("width", [48, 128])
def test_layer_equals_formula(name: AttentionName, width: int) -> None:
    """Values and gradients of the layer are those of the formula."""
    torch.manual_seed(0)
    module = Attention(width, 2, name).double()
    tokens = torch.randn(2, 11, width, dtype=torch.float64, requires_grad=True)
    found, expected = module(tokens), manual(module, tokens)
    torch.testing.assert_close(found, expected)
    weighting = torch.randn_like(found)
    leaves = [tokens, *module.parameters()]
    torch.testing.assert_close(
        torch.autograd.grad((found * weighting).sum(), leaves),
        torch.autograd.grad((expected * weighting).sum(), leaves),
    )


def test_cudnn_form_equals_torch_on_the_cpu() -> None:
    """The order of torch's kernels changes no value."""
    parts = torch.randn(3, 2, 9, 3, 16, dtype=torch.float64).unbind(0)
    torch.testing.assert_close(attention.attend_in_cudnn(*parts), attention.attend_in_torch(*parts))


def test_operator_knows_its_shapes() -> None:
    """Without a device the operator still says what it would return, as compilers ask."""
    parts = torch.empty(3, 2, 70, 4, 64, dtype=torch.bfloat16, device="meta")
    mixed, logsumexp = attention.attention_with_logsumexp(*parts)
    assert (mixed.shape, mixed.dtype) == ((2, 70, 4, 64), torch.bfloat16)
    assert (logsumexp.shape, logsumexp.dtype) == ((2, 4, 70, 1), torch.float32)


class OnCuda:
    """Stands for a tensor on a CUDA device, of which the choice asks these four things."""

    is_cuda = True

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, requires_grad: bool = False) -> None:
        self.shape, self.dtype, self.requires_grad = shape, dtype, requires_grad


LONG = (1, 56_320, 8, 64)


@pytest.mark.parametrize(
    ("name", "shape", "dtype", "requires_grad", "expected"),
    [
        ("auto", LONG, torch.bfloat16, False, "triton"),
        ("auto", LONG, torch.bfloat16, True, "triton"),
        ("auto", LONG, torch.float32, False, "cudnn"),
        ("auto", (1, 56_320, 8, 32), torch.bfloat16, False, "cudnn"),
        ("auto", (1, 512, 8, 64), torch.bfloat16, False, "cudnn"),
        ("triton", LONG, torch.bfloat16, True, "triton"),
        ("fp8", LONG, torch.bfloat16, False, "fp8"),
        ("fp8", LONG, torch.bfloat16, True, "cudnn"),
        ("flash3", LONG, torch.bfloat16, True, "flash3"),
        ("flash3", LONG, torch.float32, True, "cudnn"),
        ("torch", LONG, torch.bfloat16, False, "torch"),
    ],
)
def test_form_by_shape(
    monkeypatch: pytest.MonkeyPatch,
    name: AttentionName,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    requires_grad: bool,
    expected: str,
) -> None:
    """Our kernel only where it fits, cuDNN elsewhere; 8-bit scores are for inference alone."""
    monkeypatch.setattr(attention, "_why_not", lambda name: "")
    part: Any = OnCuda(shape, dtype, requires_grad)
    assert choose_attention_backend(name).form(part, part, part) == expected
    with torch.no_grad():
        unwatched = choose_attention_backend(name).form(part, part, part)
    assert unwatched == ("cudnn" if dtype == torch.float32 and name != "torch" else unwatched)
    assert choose_attention_backend(name).form(*torch.zeros(3, *LONG[:1], 4, 2, 2)) == "torch"


@pytest.mark.skipif(torch.cuda.is_available(), reason="what happens without a GPU")
def test_choice_without_a_gpu() -> None:
    """Still chooses by itself and says why; a named kernel says what is missing."""
    backend = choose_attention_backend()
    assert describe_attention_backend(backend) == (
        "attention: cudnn on CUDA, torch on CPU (no kernel of our own: no CUDA device)"
    )
    with pytest.raises(ValueError, match="triton cannot run here \\(no CUDA device\\)"):
        choose_attention_backend("triton")
    with pytest.raises(ValueError, match="must be auto or one of torch"):
        choose_attention_backend("sparse")  # type: ignore[arg-type]


def test_description_names_both_forms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inference and training are told apart where they differ."""
    monkeypatch.setattr(attention, "_why_not", lambda name: "")
    assert describe_attention_backend(choose_attention_backend("fp8")) == (
        "attention: fp8 on CUDA, cudnn where gradients are wanted, torch on CPU (as asked)"
    )


def test_decoder_hands_the_choice_on() -> None:
    """`DecoderConfig.attention` reaches the attention blocks."""
    config = DecoderConfig(width=64, depth=2, pattern="1M1T", num_heads=2, attention="torch")
    attend = LatentGaussianDecoder(config).enc_blocks[1].attn.attend
    assert (attend.inference, attend.training) == ("torch", "torch")
