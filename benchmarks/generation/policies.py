"""Memory policies at full size, and the tokenizer's part of a scene."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from benchmarks.full_size.measure import measure
from benchmarks.generation.network import Bench, drawn, evaluation_of, random_network
from benchmarks.generation.result_file import Row, free_memory
from benchmarks.kernels.cosmos_encoder import codec_of, random_autoencoder
from lyra_ns.device import GIB, MemoryName
from lyra_ns.gen3c.inputs import encode_buffers
from lyra_ns.gen3c.memory import POLICIES, ClipSize, apply_memory_policy, memory_needs

NUM_TRAJECTORIES = 6
"""Clips of a scene."""


def random_text_encoder(device: str) -> Any:
    """The encoder of T5-11B (4.9 billion weights) in bfloat16, on the device."""
    from transformers import T5Config, T5EncoderModel

    config = T5Config(d_model=1024, d_kv=128, d_ff=65536, num_layers=24, num_heads=128, vocab_size=32128)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            text_encoder = T5EncoderModel(config).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(before)
    text_encoder.to_empty(device=device)
    for weight in text_encoder.parameters():
        weight.normal_(std=0.02)
    return text_encoder


def pipeline_of(bench: Bench, with_text: bool) -> Any:
    """A pipeline of random parts at full size."""
    from lyra_ns.gen3c.pipeline import Gen3CPipeline, gen3c_scheduler

    network = random_network(bench.config, bench.device)
    pipeline = Gen3CPipeline(network, random_autoencoder(), gen3c_scheduler())
    pipeline.set_progress_bar_config(disable=True)
    if with_text:
        pipeline.text_encoder = random_text_encoder(bench.device)
    return pipeline


def policy_rows(bench: Bench, with_text: bool = True) -> None:
    """Each policy: one evaluation and one text, and the most memory in use beside the estimate."""
    for policy in POLICIES:
        bench.file.row(policy, partial(_policy_row, bench, policy, False, with_text))
    bench.file.row("low, 8-bit weights", partial(_policy_row, bench, "low", True, with_text))


def _policy_row(bench: Bench, policy: MemoryName, eight_bits: bool, with_text: bool) -> Row:
    pipeline = pipeline_of(bench, with_text)
    size = ClipSize(**vars(bench.size))
    needs = memory_needs(pipeline, policy, size, eight_bits=eight_bits)
    apply_memory_policy(pipeline, policy, bench.device, eight_bits=eight_bits, size=size)
    free_memory()
    row: Row = {"resident_gib": round(torch.cuda.memory_allocated() / GIB, 2)}
    if with_text:
        row |= _prefixed("text", measure(partial(_encode_text, pipeline, bench.device), 1).row())
        row["text_estimate_gib"] = round(needs.text / GIB, 2)
    work = evaluation_of(pipeline.transformer, bench.size, bench.device)
    row |= measure(work, 1).row()
    return row | {"estimate_gib": round(needs.denoising / GIB, 2)}


@torch.no_grad()
def _encode_text(pipeline: Any, device: str) -> Any:
    tokens = torch.arange(512, device=device)[None]
    return pipeline.text_encoder(tokens, attention_mask=torch.ones_like(tokens).bool()).last_hidden_state


def _prefixed(prefix: str, row: Row) -> Row:
    return {f"{prefix}_{key}": value for key, value in row.items()}


@torch.no_grad()
def codec_rows(bench: Bench) -> None:
    """Buffers of six trajectories through the encoder, and one clip through the decoder."""
    size, autoencoder = bench.size, random_autoencoder()
    codec = codec_of(autoencoder, "auto", bench.device)

    def encoded(num_clips: int) -> Row:
        shape = (num_clips, size.num_frames, 1, 3, size.height, size.width)
        colours = torch.rand(shape, device=bench.device).mul_(2).sub_(1)
        masks = (colours[:, :, :, :1] > -0.5).float()
        encode_buffers(codec, colours[:1], masks[:1])
        return measure(lambda: encode_buffers(codec, colours, masks), 1, warm_up=0).row()

    bench.file.row("encode the 3D buffer of one trajectory", partial(encoded, 1))
    bench.file.row("encode the 3D buffers of six trajectories", partial(encoded, NUM_TRAJECTORIES))
    latents = drawn(1, 16, *size.latent_shape, device=bench.device, seed=0)
    decode = partial(codec.decode, codec.from_diffusion(latents))
    bench.file.row("decode one clip", lambda: measure(decode, 1).row())
