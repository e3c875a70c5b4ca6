"""Our attention kernels against float64 and cuDNN on a GPU; that they may use cuDNN's backward pass."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lyra_ns.ops import attention
from lyra_ns.ops.attention import AttentionName, choose_attention_backend
from lyra_ns.ops.attention_triton import AttentionTiles, attend, suits_overlap

pytestmark = pytest.mark.gpu

Form = attention.AttentionBackend
HEADS = 4


@pytest.fixture(autouse=True)
def hopper() -> None:
    """Skipped where our kernel is not meant to run."""
    if torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("the kernel is made for compute capability 9")


def draw(tokens: int, scenes: int = 1, spread: float = 1.0) -> Tensor:
    """Queries, keys and values [B, N, 3, H, 64] of one projection; scores deviate by spread^2."""
    generator = torch.Generator("cuda").manual_seed(0)
    qkv = torch.randn(scenes, tokens, 3, HEADS, 64, generator=generator, device="cuda")
    qkv[:, :, :2] *= spread
    return qkv.bfloat16()


def with_far_key(tokens: int) -> Tensor:
    """One key thousands away from all scores: every weight vanishes under the bound."""
    qkv = draw(tokens)
    qkv[:, :, 0, :, 0] = 0
    qkv[:, 40, 1] = 0
    qkv[:, 40, 1, :, 0] = 2.0**14
    return qkv


def expected(qkv: Tensor) -> tuple[Tensor, Tensor]:
    """Attention and log-sum-exp in float64."""
    query, key, value = (part.double().transpose(1, 2) for part in qkv.unbind(2))
    scores = query @ key.transpose(-1, -2) / 8
    return (scores.softmax(-1) @ value).transpose(1, 2), scores.logsumexp(-1, keepdim=True)


def relative(found: Tensor, truth: Tensor) -> float:
    """Norm of the difference over the norm of the truth."""
    return ((found.double() - truth).norm() / truth.norm()).item()


CASES = {
    "flat": lambda: draw(4096),
    "two scenes, odd": lambda: draw(4099, scenes=2),
    "shorter than a tile": lambda: draw(50),
    "one tile": lambda: draw(64),
    "peaked": lambda: draw(4096, spread=3.0),
    "two scenes, odd groups": lambda: draw(64 * 65, scenes=2),
    "large": lambda: draw(4096, spread=8.0),
    "far key": lambda: with_far_key(4096),
}


@pytest.mark.parametrize("tiles", [None, AttentionTiles()], ids=["overlapped where whole", "waiting"])
@pytest.mark.parametrize("case", CASES)
def test_kernel_is_as_exact_as_cudnn(case: str, tiles: AttentionTiles | None) -> None:
    """Values as near to float64 as bfloat16 allows, and the log-sum-exp within a rounded weight.

    In peaked rows cuDNN is nearer: its shift is the row's maximum, so the largest weight is exactly one, and
    ours is rounded like all others.
    """
    qkv = CASES[case]()
    truth, logsumexp = expected(qkv)
    parts = qkv.unbind(2)
    mixed, found = attend(*parts, tiles)
    by_cudnn = relative(attention.attend_in_cudnn(*parts), truth)
    assert relative(mixed, truth) < (1.5 if case == "peaked" else 1.1) * by_cudnn + 1e-4
    assert (found.double() - logsumexp).abs().max() < 2.0**-8


@pytest.mark.parametrize("spread", [1.0, 3.0])
@pytest.mark.parametrize("scenes", [1, 2])
def test_gradients_are_as_exact_as_cudnn(scenes: int, spread: float) -> None:
    """The backward pass of cuDNN takes our output and log-sum-exp, so that auto may train with our kernel."""
    qkv = draw(2048, scenes, spread)
    weighting = torch.randn(scenes, 2048, HEADS, 64, device="cuda")
    exact = qkv.double().requires_grad_()
    (truth,) = torch.autograd.grad((expected(exact)[0] * weighting.double()).sum(), exact)

    def errors(attend: Form) -> list[float]:
        leaf = qkv.clone().requires_grad_()
        (found,) = torch.autograd.grad((attend(*leaf.unbind(2)).float() * weighting).sum(), leaf)
        return [relative(found[:, :, part], truth[:, :, part]) for part in range(3)]

    for ours, theirs in zip(
        errors(attention.attend_in_triton), errors(attention.attend_in_cudnn), strict=True
    ):
        assert ours < (1.4 if spread > 1 else 1.2) * theirs + 1e-4


def test_overlapped_kernel_repeats_itself() -> None:
    """A copy that comes too early or too late would change some of many results."""
    parts = draw(64 * 301).unbind(2)
    assert suits_overlap(*parts[:2]), "this Triton should have Gluon"
    first = attention.attend_in_triton(*parts)
    assert all(torch.equal(first, attention.attend_in_triton(*parts)) for _ in range(20))
    assert relative(first, attend(*parts, AttentionTiles())[0].double()) < 2e-3


def test_expanded_gradient_is_taken() -> None:
    """The gradient of a sum has stride zero."""
    leaf = draw(256).requires_grad_()
    attention.attend_in_triton(*leaf.unbind(2)).sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.isfinite().all()


def test_eight_bit_scores_are_near() -> None:
    """8-bit scores are visibly rounded, and no more than their three bits of mantissa explain."""
    qkv = draw(4096)
    error = relative(attention.attend_in_fp8(*qkv.unbind(2)), expected(qkv)[0])
    assert 0.01 < error < 0.06


def test_nothing_waits_for_the_device() -> None:
    """Also where the bound fails, no number is read back before the result."""
    parts = with_far_key(4096).unbind(2)
    attention.attend_in_triton(*parts)
    torch.cuda.set_sync_debug_mode("error")
    try:
        attention.attend_in_triton(*parts)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_kernel_runs_in_a_graph() -> None:
    """A captured call computes with the numbers that stand in its inputs when it is replayed."""
    qkv = draw(4096)
    parts = qkv.unbind(2)
    attention.attend_in_triton(*parts)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = attention.attend_in_triton(*parts)
    qkv.copy_(with_far_key(4096))
    graph.replay()
    torch.testing.assert_close(captured, attention.attend_in_triton(*parts))


@pytest.mark.parametrize("name", ["flash3", "flash4"])
def test_flash_attention_agrees(name: AttentionName) -> None:
    """FlashAttention, where it is installed, takes our layout and gives values and gradients."""
    try:
        backend = choose_attention_backend(name)
    except ValueError as error:
        pytest.skip(str(error))
    leaf = draw(1024).requires_grad_()
    mixed = backend(*leaf.unbind(2))
    assert relative(mixed, expected(leaf.detach())[0]) < 5e-3
    mixed.float().square().sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.isfinite().all()


def test_auto_takes_our_kernel_for_long_sequences() -> None:
    """On a Hopper GPU auto infers and trains with our kernel."""
    parts = draw(attention.SHORTEST_FOR_KERNEL).unbind(2)
    backend = choose_attention_backend()
    assert backend.form(*parts) == "triton"
    assert backend.form(*(part.detach().requires_grad_() for part in parts)) == "triton"
    torch.testing.assert_close(backend(*parts), attention.attend_in_cudnn(*parts), rtol=0.02, atol=2e-3)
