"""Attention among all tokens in several forms with equal values; some are faster, one is less exact.

`torch` is scaled_dot_product_attention and the truth for the others. `cudnn` is the same function with
cuDNN's kernels first. `triton` is our own kernel for long sequences (ops/attention_triton.py), whose backward
pass is cuDNN's. `fp8` is that kernel with 8-bit scores. `flash3` and `flash4` call FlashAttention where it is
installed. All take query, key and value as [B, N, H, D], which may be strided parts of one tensor, and use
the scale D^-1/2, no mask and no positions (docs/reference/decoder.md, "Blocks").

Shape letters: B scenes, N tokens, H heads, D channels of a head.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

AttentionName = Literal["auto", "torch", "cudnn", "triton", "fp8", "flash3", "flash4"]

KERNEL_HEAD_DIM = 64
"""Channels of a head in our own kernel."""
SHORTEST_FOR_KERNEL = 4096
"""Tokens from which our own kernel is used: below, its two launches cost more than they save."""

_BY_SPEED = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]


def attend_in_torch(
    query: Float[Tensor, "B N H D"], key: Float[Tensor, "B N H D"], value: Float[Tensor, "B N H D"]
) -> Float[Tensor, "B N H D"]:
    """Attention by the form that torch chooses."""
    query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
    return functional.scaled_dot_product_attention(query, key, value).transpose(1, 2)


def attend_in_cudnn(
    query: Float[Tensor, "B N H D"], key: Float[Tensor, "B N H D"], value: Float[Tensor, "B N H D"]
) -> Float[Tensor, "B N H D"]:
    """Attention by cuDNN, or by the next of torch's kernels if cuDNN cannot (float32, odd channels)."""
    # Before torch 2.6 the order could not be given and cuDNN came first where it could run.
    ordered = {"set_priority": True} if "set_priority" in inspect.signature(sdpa_kernel).parameters else {}
    with sdpa_kernel(_BY_SPEED, **ordered):
        return attend_in_torch(query, key, value)


@torch.library.custom_op("lyra_ns::attention", mutates_args=())
def attention_with_logsumexp(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Attention [B, N, H, D] by our own kernel and the logarithm of each row's sum [B, H, N, 1], float32.

    An operator of torch's library, so that a policy for recomputation can name it and keep its output.
    """
    from lyra_ns.ops.attention_triton import attend

    return attend(query, key, value)


@attention_with_logsumexp.register_fake
def _(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    num_scenes, num_tokens, num_heads, _ = query.shape
    logsumexp = query.new_empty(num_scenes, num_heads, num_tokens, 1, dtype=torch.float32)
    return query.new_empty(value.shape), logsumexp


def _keep_for_backward(
    ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: tuple[Tensor, Tensor]
) -> None:
    """The inputs and the result: nothing of the size N^2 is computed again."""
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*inputs, *output)


def _gradients(ctx: Any, mixed_gradient: Tensor, _: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value."""
    *parts, logsumexp = ctx.saved_tensors
    query, key, value, mixed = (part.transpose(1, 2) for part in parts)
    gradient = mixed_gradient.contiguous().transpose(1, 2)
    if query.is_cuda:
        gradients = torch.ops.aten._scaled_dot_product_cudnn_attention_backward(
            gradient, query, key, value, mixed, logsumexp,
            philox_seed=torch.empty((), dtype=torch.int64, device=query.device),
            philox_offset=torch.empty((), dtype=torch.int64, device=query.device),
            attn_bias=None, cum_seq_q=None, cum_seq_k=None,
            max_q=query.shape[2], max_k=key.shape[2], dropout_p=0.0, is_causal=False,
        )  # fmt: skip
    else:
        gradients = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            gradient, query, key, value, mixed, logsumexp.squeeze(-1), dropout_p=0.0, is_causal=False
        )
    query_gradient, key_gradient, value_gradient = (part.transpose(1, 2) for part in gradients)
    return query_gradient, key_gradient, value_gradient


attention_with_logsumexp.register_autograd(_gradients, setup_context=_keep_for_backward)


def attend_in_triton(
    query: Float[Tensor, "B N H D"], key: Float[Tensor, "B N H D"], value: Float[Tensor, "B N H D"]
) -> Float[Tensor, "B N H D"]:
    """Attention by our own kernel, exact; bfloat16 with 64 channels."""
    return attention_with_logsumexp(query, key, value)[0]


def attend_in_fp8(
    query: Float[Tensor, "B N H D"], key: Float[Tensor, "B N H D"], value: Float[Tensor, "B N H D"]
) -> Float[Tensor, "B N H D"]:
    """Attention by our own kernel with 8-bit scores; bfloat16 with 64 channels, not differentiable."""
    from lyra_ns.ops.attention_triton import attend_in_eight_bits

    return attend_in_eight_bits(query, key, value)


def attend_in_flash3(
    query: Float[Tensor, "B N H D"], key: Float[Tensor, "B N H D"], value: Float[Tensor, "B N H D"]
) -> Float[Tensor, "B N H D"]:
    """Attention by FlashAttention-3; 16-bit floats."""
    from flash_attn_interface import flash_attn_func

    return _without_logsumexp(flash_attn_func(query, key, value))


def attend_in_flash4(
    query: Float[Tensor, "B N H D"], key: Float[Tensor, "B N H D"], value: Float[Tensor, "B N H D"]
) -> Float[Tensor, "B N H D"]:
    """Attention by FlashAttention-4; 16-bit floats."""
    from flash_attn.cute import flash_attn_func

    return _without_logsumexp(flash_attn_func(query, key, value))


def _without_logsumexp(result: Tensor | tuple[Tensor, ...]) -> Tensor:
    """The mixed values; some releases return the log-sum-exp with them."""
    return result[0] if isinstance(result, tuple) else result


_FORMS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "torch": attend_in_torch,
    "cudnn": attend_in_cudnn,
    "triton": attend_in_triton,
    "fp8": attend_in_fp8,
    "flash3": attend_in_flash3,
    "flash4": attend_in_flash4,
}


@dataclass(frozen=True)
class AttentionBackend:
    """Which form of attention runs when; made by `choose_attention_backend`."""

    inference: AttentionName
    """Form on a CUDA device where no gradient is wanted."""
    training: AttentionName
    """Form on a CUDA device where a gradient is wanted."""
    reason: str
    """Why, for logs."""

    def __call__(
        self, query: Float[Tensor, "B N H D"], key: Float[Tensor, "B N H D"], value: Float[Tensor, "B N H D"]
    ) -> Float[Tensor, "B N H D"]:
        """Attention among all tokens of each scene."""
        # Triton launches on the current device, whichever one its tensors are on.
        with torch.cuda.device_of(query):
            return _FORMS[self.form(query, key, value)](query, key, value)

    def form(self, query: Tensor, key: Tensor, value: Tensor) -> AttentionName:
        """The form in use for these tensors: `torch` on the CPU, `cudnn` where the chosen one does not fit.

        Our own kernel fits bfloat16 with 64 channels and long sequences, FlashAttention fits 16-bit floats.
        """
        if not query.is_cuda:
            return "torch"
        wants_gradient = torch.is_grad_enabled() and any(part.requires_grad for part in (query, key, value))
        name = self.training if wants_gradient else self.inference
        return name if _fits(name, query) else "cudnn"


def _fits(name: AttentionName, query: Tensor) -> bool:
    """Whether the form takes tensors of this dtype and shape."""
    if name in ("triton", "fp8"):
        long_enough = query.shape[1] >= SHORTEST_FOR_KERNEL
        return query.dtype == torch.bfloat16 and query.shape[-1] == KERNEL_HEAD_DIM and long_enough
    if name in ("flash3", "flash4"):
        return query.dtype in (torch.bfloat16, torch.float16)
    return True


def choose_attention_backend(name: AttentionName = "auto") -> AttentionBackend:
    """The backend `name`, or with auto the fastest exact form; ValueError if it cannot run here.

    On the CPU every backend is `torch`. Our own kernel trains with the backward pass of cuDNN; fp8 with cuDNN
    forward and backward.
    """
    if name == "auto":
        obstacle = _why_not("triton")
        if obstacle:
            return AttentionBackend("cudnn", "cudnn", f"no kernel of our own: {obstacle}")
        return AttentionBackend("triton", "triton", "a Hopper GPU with Triton")
    if name not in _FORMS:
        raise ValueError(f"the attention backend must be auto or one of {', '.join(_FORMS)}, found {name!r}")
    obstacle = _why_not(name)
    if obstacle:
        raise ValueError(
            f"the attention backend {name} cannot run here ({obstacle}): choose auto, cudnn or torch"
        )
    return AttentionBackend(name, "cudnn" if name == "fp8" else name, "as asked")


def describe_attention_backend(backend: AttentionBackend) -> str:
    """One line for logs that names the forms in use and why."""
    if backend.inference == backend.training:
        return f"attention: {backend.inference} on CUDA, torch on CPU ({backend.reason})"
    return (
        f"attention: {backend.inference} on CUDA, {backend.training} where gradients are wanted, "
        f"torch on CPU ({backend.reason})"
    )


@cache
def _why_not(name: AttentionName) -> str:
    """What keeps a form from running, empty if nothing does."""
    if name in ("torch", "cudnn"):
        return ""
    if not torch.cuda.is_available():
        return "no CUDA device"
    try:
        if name == "flash3":
            import flash_attn_interface  # noqa: F401
        elif name == "flash4":
            import flash_attn.cute  # noqa: F401
        else:
            import lyra_ns.ops.attention_triton  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:  # a wheel for another torch fails in many ways
        return f"it does not import: {error}"
    capability = torch.cuda.get_device_capability()
    if name in ("triton", "fp8") and capability[0] != 9:
        return f"made for compute capability 9, found {capability[0]}.{capability[1]}"
    return ""
