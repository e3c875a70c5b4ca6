"""A random network of GEN3C-Cosmos-7B's size, its inputs, and one evaluation of it in many ways."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.full_size.inputs import Size
from benchmarks.full_size.measure import measure
from benchmarks.generation.result_file import ResultFile, Row
from lyra_ns.gen3c.layers import keep_positions, use_eight_bits, use_own_attention, use_own_blocks
from lyra_ns.gen3c.step_cache import StepCache, StepCacheSettings, remove_step_cache
from lyra_ns.gen3c.transformer import PLAIN, Evaluation, GuidedDenoiser, gen3c_config

NOISE_LABEL = 0.25
"""0.25 ln sigma of the evaluation: sigma is e."""
PLAIN_WAY = "diffusers, as it comes"
"""The way that others are compared with."""
Config = Mapping[str, Any]


@dataclass(frozen=True)
class Bench:
    """What all parts need."""

    file: ResultFile
    """Where rows go."""
    size: Size
    """The clip."""
    device: str
    """Where it runs."""
    config: Config
    """Of the network."""
    repetitions: int
    """Timed calls, after one that is not."""


def random_network(config: Config, device: str) -> Any:
    """The network in bfloat16, its weights drawn on the device; learnable positions in float32, as loaded."""
    from diffusers import CosmosTransformer3DModel

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            transformer = CosmosTransformer3DModel(**config).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(before)
    generator = torch.Generator(device).manual_seed(0)
    for weight in transformer.parameters():
        if weight.ndim > 1:
            weight.normal_(std=weight.shape[-1] ** -0.5, generator=generator)
    transformer.learnable_pos_embed.float()
    return transformer


def drawn(*shape: int, device: str, seed: int) -> Tensor:
    """Standard normal numbers in float32."""
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randn(*shape, generator=generator, device=device)


def evaluation_of(
    transformer: Any,
    size: Size,
    device: str,
    guidance: float = 0.0,
    evaluation: Evaluation = PLAIN,
    noise_label: float = NOISE_LABEL,
) -> Callable[[], Tensor]:
    """One call of the denoiser on the same inputs every time."""
    channels = transformer.config.text_embed_dim
    text, negative = (drawn(1, 512, channels, device=device, seed=seed) for seed in (1, 2))
    buffers = drawn(1, 64, *size.latent_shape, device=device, seed=3) / 2
    scaled = drawn(1, 16, *size.latent_shape, device=device, seed=4)
    denoiser = GuidedDenoiser(transformer, text, negative, buffers, guidance=guidance, evaluation=evaluation)
    return torch.no_grad()(partial(denoiser, scaled, noise_label))


def relative(found: Tensor, expected: Tensor) -> float:
    """Distance over size (L2)."""
    return ((found.float() - expected.float()).norm() / expected.float().norm()).item()


def with_cudnn(work: Callable[[], Any]) -> Callable[[], Any]:
    """The same work with cuDNN's attention in diffusers' own processors."""

    def run() -> Any:
        from diffusers.models.attention_dispatch import attention_backend

        with attention_backend("_native_cudnn"):
            return work()

    return run


def evaluation_rows(bench: Bench) -> None:
    """One evaluation, more and more of ours put into one network; the last changes cannot be undone."""
    network = random_network(bench.config, bench.device)
    work = evaluation_of(network, bench.size, bench.device)
    expected = work()

    def measured(run: Callable[[], Tensor] = work) -> Row:
        deviation = relative(run(), expected)  # and the call that does not count
        return measure(run, bench.repetitions, warm_up=0).row() | {"deviation": deviation}

    bench.file.row(PLAIN_WAY, measured)
    bench.file.row("diffusers, cuDNN attention", partial(measured, with_cudnn(work)))
    use_own_attention(network)
    bench.file.row("own attention", measured)
    keep_positions(network)
    bench.file.row("and kept positions", measured)
    use_own_blocks(network)
    bench.file.row("and own blocks with fused kernels", measured)
    use_own_blocks(network, num_parts=8)
    bench.file.row("the same, perceptron in 8 parts", measured)
    use_own_blocks(network)
    bench.file.row("a predicted evaluation (step cache)", partial(_predicted_row, network, bench))
    remove_step_cache(network)
    use_eight_bits(network, "multiply")
    bench.file.row("own blocks, 8-bit products", measured)


def _predicted_row(network: Any, bench: Bench) -> Row:
    """What an evaluation costs that runs the first block alone; its value means nothing here."""
    settings = StepCacheSettings(threshold=1e9, num_first=2, num_last=0, most_in_a_row=99)
    cache = StepCache(network, settings)
    evaluation = Evaluation(step_cache=cache)
    cache.start(99)
    for noise_label in (1.0, 0.5):
        evaluation_of(network, bench.size, bench.device, evaluation=evaluation, noise_label=noise_label)()
    work = evaluation_of(network, bench.size, bench.device, evaluation=evaluation)
    return measure(work, bench.repetitions).row() | {"skipped": cache.num_skipped}


def compiled_rows(bench: Bench) -> None:
    """Blocks compiled by torch instead of fused by us; the time of compiling is that of the first call."""
    network = random_network(bench.config, bench.device)
    expected = evaluation_of(network, bench.size, bench.device)()
    keep_positions(network)
    use_own_blocks(network, is_fused=False)

    def measured() -> Row:
        for block in network.transformer_blocks:
            block.compile_work()
        work = evaluation_of(network, bench.size, bench.device)
        first = measure(work, 1, warm_up=0).milliseconds
        row = measure(work, bench.repetitions, warm_up=0).row()
        return row | {"first_s": round(first / 1000, 1), "deviation": relative(work(), expected)}

    bench.file.row("own attention and positions, compiled", measured)


def guidance_rows(bench: Bench) -> None:
    """Both views of guidance: one after the other, and in one batch."""
    network = random_network(bench.config, bench.device)
    keep_positions(network)
    use_own_blocks(network)
    for way, evaluation in (("two passes", PLAIN), ("one batch", Evaluation(in_one_batch=True))):
        work = evaluation_of(network, bench.size, bench.device, guidance=1.0, evaluation=evaluation)
        bench.file.row(way, lambda work=work: measure(work, 1).row())


FULL_CONFIG = gen3c_config()
"""GEN3C-Cosmos-7B."""
