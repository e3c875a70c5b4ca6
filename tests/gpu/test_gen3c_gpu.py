"""GEN3C on a GPU: the small pipeline as on the CPU, in bfloat16, offloaded; the full network at full size."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lyra_ns.gen3c.transformer import GuidedDenoiser, gen3c_config
from tests.helpers.small_gen3c import HEIGHT, NUM_FRAMES, WIDTH, drawn, small_autoencoder, small_transformer

pytestmark = pytest.mark.gpu

FULL_LATENTS = (16, 88, 160)
"""Latent frames, rows and columns of 121 x 704 x 1280."""
FULL_GIB = 30
"""What the full network may take with its 13.5 GiB of weights."""


def small_pipeline() -> Any:
    from lyra_ns.gen3c.pipeline import Gen3CPipeline, gen3c_scheduler

    pipeline = Gen3CPipeline(small_transformer(), small_autoencoder(), gen3c_scheduler())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def run(pipeline: Any) -> tuple[Tensor, Tensor]:
    """Latents and their video, on the CPU; the noise is drawn there, too."""
    colours = drawn(1, NUM_FRAMES, 1, 3, HEIGHT, WIDTH).clamp(-1, 1)
    masks = (drawn(1, NUM_FRAMES, 1, 1, HEIGHT, WIDTH, seed=1) > -0.5).float()
    buffers = pipeline.encode_buffers(colours, masks)
    generator = [torch.Generator().manual_seed(0)]
    latents = pipeline(colours[:, 0, 0], buffers, num_inference_steps=5, generator=generator)
    return latents.cpu(), pipeline.decode_latents(latents).float().cpu()


def relative(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


@pytest.fixture(scope="module")
def on_cpu() -> tuple[Tensor, Tensor]:
    return run(small_pipeline())


@pytest.fixture
def in_float32() -> Any:
    """Convolutions in float32, which cuDNN rounds to TF32 by default."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.mark.usefixtures("in_float32")
@pytest.mark.parametrize("is_offloaded", [False, True])
def test_a_gpu_computes_what_a_cpu_does(on_cpu: tuple[Tensor, Tensor], is_offloaded: bool) -> None:
    pipeline = small_pipeline()
    if is_offloaded:
        pipeline.enable_model_cpu_offload()
    else:
        pipeline.to("cuda")
    for found, expected in zip(run(pipeline), on_cpu, strict=True):
        assert relative(found, expected) < 1e-3
    if is_offloaded:
        assert pipeline.transformer.device.type == pipeline.vae.device.type == "cpu"


def test_bfloat16_stays_close(on_cpu: tuple[Tensor, Tensor]) -> None:
    pipeline = small_pipeline().to("cuda", torch.bfloat16)
    latents, video = run(pipeline)
    assert latents.dtype == torch.float32
    assert relative(latents, on_cpu[0]) < 0.1
    assert relative(video, on_cpu[1]) < 0.2


def test_the_full_network_takes_a_full_video() -> None:
    """Random weights of GEN3C-Cosmos-7B, one evaluation without guidance."""
    from diffusers import CosmosTransformer3DModel

    if torch.cuda.mem_get_info()[0] < FULL_GIB * 2**30:
        pytest.skip(f"needs {FULL_GIB} GiB of free GPU memory")
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("cuda"):
            transformer = CosmosTransformer3DModel(**gen3c_config()).eval()
    finally:
        torch.set_default_dtype(torch.float32)
    generator = torch.Generator("cuda").manual_seed(0)
    text = torch.zeros(1, 512, 1024, device="cuda")
    buffers = torch.randn(1, 64, *FULL_LATENTS, generator=generator, device="cuda") / 2
    scaled = torch.randn(1, 16, *FULL_LATENTS, generator=generator, device="cuda")
    with torch.no_grad():
        predicted = GuidedDenoiser(transformer, text, text, buffers, guidance=0.0)(scaled, 0.5)
    assert predicted.shape == scaled.shape
    assert predicted.isfinite().all()
    assert predicted.std() > 0
    assert torch.cuda.max_memory_allocated() - before < FULL_GIB * 2**30
