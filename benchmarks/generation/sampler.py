"""What each way does to latents after a whole run of the sampler, on a short clip of full resolution."""

from __future__ import annotations

import copy
import time
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.full_size.inputs import Size
from benchmarks.generation.network import Bench, drawn, evaluation_of, random_network, relative, with_cudnn
from benchmarks.generation.result_file import Row
from lyra_ns.gen3c.layers import keep_positions, use_eight_bits, use_own_attention, use_own_blocks
from lyra_ns.gen3c.sampling import sample
from lyra_ns.gen3c.step_cache import StepCache, StepCacheSettings, remove_step_cache
from lyra_ns.gen3c.transformer import PLAIN, Evaluation, GuidedDenoiser

CACHES = (
    StepCacheSettings(threshold=0.05),
    StepCacheSettings(threshold=0.1),
    StepCacheSettings(threshold=0.2),
    StepCacheSettings(threshold=0.1, order=0),
)
"""Step caches that are tried."""


@torch.no_grad()
def latents_of(
    network: Any, size: Size, device: str, num_steps: int, evaluation: Evaluation = PLAIN
) -> Tensor:
    """Latents of the same clip from the same noise every time, with guidance 1."""
    from lyra_ns.gen3c.pipeline import gen3c_scheduler

    scheduler = gen3c_scheduler()
    scheduler.set_timesteps(num_steps)
    if evaluation.step_cache is not None:
        evaluation.step_cache.start(num_steps)
    text, negative = (
        drawn(1, 512, network.config.text_embed_dim, device=device, seed=seed) for seed in (1, 2)
    )
    buffers = drawn(1, 64, *size.latent_shape, device=device, seed=3) / 2
    initial = drawn(1, 16, *size.latent_shape, device=device, seed=4) * scheduler.init_noise_sigma
    known, noise = (drawn(1, 16, 1, *size.latent_shape[1:], device=device, seed=seed) for seed in (5, 6))
    denoiser = GuidedDenoiser(network, text, negative, buffers, evaluation=evaluation)
    return sample(denoiser, scheduler.sigmas.tolist(), initial, known / 2, noise)


def deviation_rows(bench: Bench, num_frames: int, num_steps: int) -> None:
    """Deviation of the latents, relative (L2), from those of diffusers as it comes."""
    size = replace(bench.size, num_frames=num_frames)
    network = random_network(bench.config, bench.device)
    plain = latents_of(network, size, bench.device, num_steps)

    def measured(evaluation: Evaluation = PLAIN) -> Row:
        start = time.perf_counter()
        found = latents_of(network, size, bench.device, num_steps, evaluation)
        deviation = relative(found, plain)
        return {"num_frames": num_frames, "num_steps": num_steps, "deviation": deviation} | {
            "seconds": round(time.perf_counter() - start, 2)
        }

    bench.file.row("diffusers, cuDNN attention", with_cudnn(measured))
    use_own_attention(network)
    keep_positions(network)
    bench.file.row("own attention and positions", measured)
    use_own_blocks(network)
    bench.file.row("own blocks with fused kernels", measured)
    bench.file.row("both views in one batch", lambda: measured(Evaluation(in_one_batch=True)))
    for settings in CACHES:
        way = f"step cache, threshold {settings.threshold:g}, order {settings.order}"
        bench.file.row(way, lambda settings=settings: _cached(network, settings, measured))
    remove_step_cache(network)
    stored = copy.deepcopy(network)
    use_eight_bits(network, "multiply")
    bench.file.row("8-bit products", measured)
    network = stored
    use_eight_bits(network, "store")
    bench.file.row("8-bit weights", measured)


def _cached(network: Any, settings: StepCacheSettings, measured: Any) -> Row:
    cache = StepCache(network, settings)
    row = measured(Evaluation(step_cache=cache))
    return row | {"skipped": cache.num_skipped, "evaluations": cache.num_skipped + cache.num_computed}


def error_rows(bench: Bench, num_frames: int) -> None:
    """Error of one evaluation in bfloat16 against the same weights in float32, on a short clip."""
    size = replace(bench.size, num_frames=num_frames)
    network = random_network(bench.config, bench.device)
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    exact = evaluation_of(copy.deepcopy(network).float(), size, bench.device)()
    torch.backends.cuda.matmul.allow_tf32 = before
    work = evaluation_of(network, size, bench.device)

    def measured() -> Row:
        return {"num_frames": num_frames, "error": relative(work(), exact)}

    bench.file.row("diffusers, as it comes", measured)
    use_own_attention(network)
    keep_positions(network)
    bench.file.row("own attention and positions", measured)
    use_own_blocks(network)
    bench.file.row("own blocks with fused kernels", measured)
    keep_positions(network, "bf16_legacy")
    bench.file.row("with rotary angles as in the official code", measured)
    keep_positions(network)
    use_eight_bits(network, "multiply")
    bench.file.row("8-bit products", measured)
