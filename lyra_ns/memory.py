"""How much memory the feed-forward pass takes, what a device has left, and words for what does not fit.

The estimate is arithmetic, made before anything is computed. Each stage is the sum of the tensors that are
alive at its largest moment, what earlier stages left for it included, the weights of decoder and codec not.
The products of sizes follow from the code; how many such tensors live at once is what the constants say, and
tests hold them against measured peaks.

Shape letters: V views, T latent frames, h w latent cells; a token is a patch of them, a cell one Gaussian.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from lyra_ns.decoder.conditioning import CHEAP_VIEWS, RAYS_AT_ONCE
from lyra_ns.decoder.config import DecoderConfig, block_kinds
from lyra_ns.device import GIB, free_bytes
from lyra_ns.gaussians import NUM_RAW_CHANNELS, num_kept
from lyra_ns.ops.ssd import TORCH_CHUNK
from lyra_ns.ops.ssd_types import KERNEL_CHUNK, ScanForm

MEMINFO = Path("/proc/meminfo")
"""Where Linux says what main memory has left."""


class DoesNotFit(ValueError):
    """The pass needs more memory than there is; the message gives the numbers and what to try."""


def available_bytes(device: torch.device) -> int | None:
    """Bytes that tensors on `device` could still take; None where nothing says it."""
    if device.type == "cuda":
        return free_bytes(device)
    if device.type != "cpu" or not MEMINFO.is_file():
        return None
    lines = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines() if ":" in line)
    return int(lines["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in lines else None


def too_large(estimate: MemoryEstimate, free: int, device: torch.device) -> DoesNotFit:
    """The refusal of a pass that cannot fit even in its smallest way."""
    return DoesNotFit(
        f"this scene needs about {estimate} even in the chunked way, and {gib(free)} of {device} are free: "
        f"{_advice(device, is_chunked=True)}"
    )


@contextmanager
def explaining_exhaustion(
    device: torch.device,
    estimate: MemoryEstimate | None = None,
    free: int | None = None,
    is_chunked: bool = False,
) -> Iterator[None]:
    """Turns torch's out-of-memory errors, of a GPU or of main memory, into DoesNotFit.

    `estimate` and `free` are what was said and found before the pass, if anything.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not _is_exhaustion(error):
            raise
        expected = f"; the estimate was {estimate}" if estimate else ""
        found = "" if free is None else f", and {gib(free)} were free at the start"
        raise DoesNotFit(
            f"{device} ran out of memory{expected}{found}: {_advice(device, is_chunked)}"
        ) from error


def _is_exhaustion(error: Exception) -> bool:
    # Main memory has no error class of its own.
    is_host = isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error)
    return is_host or isinstance(error, torch.cuda.OutOfMemoryError)


def _advice(device: torch.device, is_chunked: bool) -> str:
    """What the user can do, without what was done already."""
    steps = ["read fewer trajectories (such as --trajectories 5 0 1)"]
    if not is_chunked:
        steps.append("take the chunked way (--memory chunked)")
    if device.type == "cuda":
        steps += ["end other programs on the GPU", "run on the processor (--device cpu)"]
    return f"{', '.join(steps[:-1])} or {steps[-1]}" if len(steps) > 1 else steps[0]


FLOAT32, BFLOAT16, INT64 = 4, 2, 8
"""Bytes of a number."""

RAY_BYTES_PER_CELL = 28
"""Origin, direction and cell size, where bfloat16 rays were widened; float32 rays share their origins."""
BYTES_PER_RAY = 56
"""Rays while maps are made of them, a few frames at a time."""
NUMBERS_PER_PIXEL = 6
"""Numbers of a Plücker map, which is held for all views that are encoded together."""
ENCODER_BYTES_PER_PIXEL = {"linear": 28, "cosmos": 2 * 2 * 28}
"""Activations of the video encoder for both maps of a view, by codec."""
ENCODER_BYTES = {"linear": 0, "cosmos": 3 * GIB // 2}
"""What the encoder needs at any size."""
SELECT_BYTES_PER_CELL = 28
"""Opacities of all cells, their masks and counts while the kept ones are found."""
GATHER_BYTES_PER_KEPT = 225
"""Indices and copies of the raw channels of kept cells while they are read from a group."""
GAUSSIAN_BYTES_PER_KEPT = 250
"""Raw channels, rays, the Gaussians and what is alive between them, for kept cells."""
RESULT_BYTES_PER_KEPT = 14 * FLOAT32
"""The numbers of one Gaussian."""

OWN_CHUNK = 128
"""Tokens of a chunk in our own kernels."""
NUM_SEGMENTS = 8
"""Pieces of the sequence whose last states our own kernels hold, each of both directions."""
UNCOUNTED = 1 / 64
"""Share for what is small: cast weights, rounded allocations, sums over segments."""

CHUNKED_LATENT_FRAMES = 2
"""Latent frames whose raw channels exist at once in the chunked way."""


@dataclass(frozen=True)
class SceneSize:
    """Sizes of one scene's latents."""

    num_views: int
    """Trajectories."""
    latent_frames: int
    """Latent frames of each."""
    height: int
    """Latent cells."""
    width: int
    """Latent cells."""


@dataclass(frozen=True)
class InferencePlan:
    """How much of a scene is held at once; values do not depend on it but for rounding."""

    views_at_once: int
    """Trajectories whose ray maps are encoded together."""
    latent_frames_at_once: int | None
    """Latent frames whose raw channels exist together; None for all."""

    @property
    def is_chunked(self) -> bool:
        """Whether this is the way of least memory."""
        return self.latent_frames_at_once is not None


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes at the largest moment of each stage, beyond the weights."""

    conditioning: int
    """Rays of the cells, and ray maps on their way through the video encoder."""
    trunk: int
    """The blocks: the stream of tokens and what one block needs beside it."""
    head: int
    """Raw channels, of all latent frames or of a group, and the choice of kept cells."""
    gaussians: int
    """The kept Gaussians on their rays."""

    @property
    def peak(self) -> int:
        """Bytes of the largest stage."""
        return max(vars(self).values())

    @property
    def largest_stage(self) -> str:
        """Name of the largest stage."""
        return max(vars(self), key=vars(self).__getitem__)

    def __str__(self) -> str:
        stages = ", ".join(f"{name} {gib(value)}" for name, value in vars(self).items())
        return f"{gib(self.peak)} beyond the weights ({stages})"


def gib(num_bytes: int) -> str:
    """Bytes as text, in GiB, or in MiB where that is little."""
    return f"{num_bytes / GIB:.1f} GiB" if num_bytes >= GIB else f"{num_bytes / 2**20:.1f} MiB"


def inference_plan(codec: str, is_chunked: bool) -> InferencePlan:
    """The whole way, or the chunked way, for latents of the codec called `codec`."""
    if is_chunked:
        return InferencePlan(1, CHUNKED_LATENT_FRAMES)
    # A network encodes as many clips as fit; one view is what it needs.
    return InferencePlan(1 if _codec_kind(codec) == "cosmos" else CHEAP_VIEWS, None)


def estimate_inference_memory(
    config: DecoderConfig,
    size: SceneSize,
    plan: InferencePlan,
    *,
    prune_ratio: float,
    codec: str,
    scan: ScanForm,
    is_low_precision: bool,
) -> MemoryEstimate:
    """Upper estimate for one scene without gradients.

    `scan` is the form of the scan on the device, `is_low_precision` whether blocks compute in bfloat16, and
    `codec` the name of the codec (`VideoLatentSpec.codec`).
    """
    num_tokens = config.num_tokens(size.num_views, size.latent_frames, size.height, size.width)
    num_cells = config.num_gaussians(size.num_views, size.latent_frames, size.height, size.width)
    kept = num_kept(num_cells, prune_ratio)
    given = _given_bytes(config, size, num_cells)
    number = BFLOAT16 if is_low_precision else FLOAT32
    stream = FLOAT32 * config.width * num_tokens
    kinds = set(block_kinds(config.pattern, config.depth))
    block = max(
        _scan_block_bytes(config, number, scan, num_tokens)
        if kind == "M"
        else num_tokens * _attention_block_bytes(config, number)
        for kind in kinds
    )
    return MemoryEstimate(
        conditioning=given + _encoding_bytes(config, size, plan, codec, number),
        trunk=given + block,
        head=given + stream + _head_bytes(config, size, plan, num_cells, kept),
        gaussians=given + stream + kept * GAUSSIAN_BYTES_PER_KEPT,
    )


def _given_bytes(config: DecoderConfig, size: SceneSize, num_cells: int) -> int:
    """Latents twice (as stored and in the codec's space), ray latents, times, and the rays of the cells."""
    latent = FLOAT32 * config.latent_channels * size.height * size.width
    videos = size.num_views * size.latent_frames * latent * (2 + 2)
    times = 2 * (size.latent_frames + 1) * latent if config.use_time else 0
    return videos + times + num_cells * RAY_BYTES_PER_CELL


def _encoding_bytes(
    config: DecoderConfig, size: SceneSize, plan: InferencePlan, codec: str, number: int
) -> int:
    """Ray maps of some views at full resolution and their way through the encoder."""
    frames = (size.latent_frames - 1) * config.temporal_stride + 1
    pixels_of_frame = size.height * size.width * config.spatial_stride**2
    views, kind = min(plan.views_at_once, size.num_views), _codec_kind(codec)
    pixels = views * frames * pixels_of_frame
    maps = pixels * NUMBERS_PER_PIXEL * (number if kind == "cosmos" else FLOAT32)
    rays = min(pixels, max(RAYS_AT_ONCE, views * pixels_of_frame)) * BYTES_PER_RAY
    return maps + max(rays, pixels * ENCODER_BYTES_PER_PIXEL[kind] + ENCODER_BYTES[kind])


def _codec_kind(codec: str) -> str:
    return "cosmos" if codec.startswith("cosmos") else "linear"


def _scan_block_bytes(config: DecoderConfig, number: int, scan: ScanForm, num_tokens: int) -> int:
    """Bytes at the largest moment of a Mamba block: inside its second scan."""
    inner, state = config.inner_width, config.state_size
    projected = 2 * inner + 2 * state + inner // config.head_dim
    # The stream, the normed tokens and their cast; the projected tokens, once reversed; the first result.
    around = 2 * FLOAT32 * config.width + number * config.width + number * (2 * projected + inner)
    if scan == "reference":
        return num_tokens * (around + _recurrence_bytes(config)) + 4 * FLOAT32 * inner * state
    if scan == "chunked":
        in_chunks = -(-num_tokens // TORCH_CHUNK) * TORCH_CHUNK
        return in_chunks * (around + _chunked_scan_bytes(config, number))
    if scan != "mamba_ssm":
        return _fused_block_bytes(config, number, scan, num_tokens)
    states = inner * state / KERNEL_CHUNK
    steps = 3 * FLOAT32 * inner // config.head_dim
    inside = number * (inner + 2 * state) + FLOAT32 * states + number * states + steps
    return round(num_tokens * (around + inside))


def _fused_block_bytes(config: DecoderConfig, number: int, scan: ScanForm, num_tokens: int) -> int:
    """Bytes at the largest moment of a Mamba block whose directions are scanned together."""
    inner, state, heads = config.inner_width, config.state_size, config.inner_width // config.head_dim
    projected = 2 * inner + 2 * state + heads
    # The stream twice, since callers that hold their arguments (any before Python 3.11) keep what went into
    # the first block; the normed and the projected tokens; convolved channels and steps of both directions.
    around = 2 * FLOAT32 * config.width
    around += number * (config.width + projected + 2 * (inner + 2 * state + heads))
    steps = 3 * FLOAT32 * 2 * heads
    if scan == "fused_in_torch":
        return (
            -(-num_tokens // TORCH_CHUNK) * TORCH_CHUNK * (around + 2 * _chunked_scan_bytes(config, number))
        )
    if scan == "fused_in_mamba_ssm":
        states = 2 * inner * state / KERNEL_CHUNK
        return round(num_tokens * (around + (FLOAT32 + number) * states + steps))
    # States before every chunk, in the dtype of the tokens, are alive while the results are made.
    in_chunks = -(-num_tokens // OWN_CHUNK) * OWN_CHUNK
    states = 2 * inner * state // OWN_CHUNK
    ends = NUM_SEGMENTS * 2 * inner * state * (FLOAT32 + number)
    alive = num_tokens * (around + number * 2 * inner) + in_chunks * (number * states + steps) + ends
    return round((1 + UNCOUNTED) * alive)


def _recurrence_bytes(config: DecoderConfig) -> int:
    """Bytes per token inside the scan that goes token after token, in float32."""
    inner, state, heads = config.inner_width, config.state_size, config.inner_width // config.head_dim
    return FLOAT32 * (inner + 2 * state + 2 * heads * state + 3 * inner + 3 * heads)


def _chunked_scan_bytes(config: DecoderConfig, number: int) -> int:
    """Bytes per token inside the scan in chunks, which computes in float32."""
    inner, state, heads = config.inner_width, config.state_size, config.inner_width // config.head_dim
    widened = 2 * inner + 2 * state + heads if number < FLOAT32 else 0
    convolved, padded = inner + 2 * state, 2 * state + heads
    states = inner * state // TORCH_CHUNK
    between_chunks = max(3 * states + 2 * inner, 2 * states + 6 * inner)
    within_chunks = 3 * TORCH_CHUNK * (heads + 1) + 2 * inner
    return FLOAT32 * (widened + convolved + padded + max(between_chunks, within_chunks) + 3 * heads)


def _attention_block_bytes(config: DecoderConfig, number: int) -> int:
    """Bytes per token at the largest moment of an attention block, between or inside its two halves."""
    around = 3 * FLOAT32 * config.width + number * config.width
    attention = number * 6 * config.width
    perceptron = number * 2 * config.mlp_ratio * config.width
    return around + max(attention, perceptron)


def _head_bytes(
    config: DecoderConfig, size: SceneSize, plan: InferencePlan, num_cells: int, kept: int
) -> int:
    """Bytes of the head beside the stream of tokens."""
    latent_frames = size.num_views * size.latent_frames
    tokens_of_frame = config.num_tokens(1, 1, size.height, size.width)
    # A group needs the last latent frame of the one before, too.
    at_once = min(latent_frames, (plan.latent_frames_at_once or latent_frames) + 1)
    taps = (config.temporal_stride + 1) * config.cells_per_token**2
    weights = FLOAT32 * config.width * NUM_RAW_CHANNELS * taps
    normed = FLOAT32 * config.width * tokens_of_frame * at_once
    opacity_patches = 2 * FLOAT32 * taps * tokens_of_frame * latent_frames
    selecting = max(normed, num_cells * SELECT_BYTES_PER_CELL) + opacity_patches
    patches = FLOAT32 * (NUM_RAW_CHANNELS - 1) * taps * tokens_of_frame * at_once
    kept_at_once = min(kept, config.num_gaussians(1, at_once, size.height, size.width))
    gathering = (
        patches
        + max(normed, kept_at_once * GATHER_BYTES_PER_KEPT)
        + 3 * FLOAT32 * num_cells
        + kept * (2 * INT64 + FLOAT32 * (NUM_RAW_CHANNELS - 1))
    )
    return max(selecting, gathering) + weights
