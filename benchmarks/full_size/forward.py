"""The decoder's forward pass: latents and ray latents in, pruned Gaussians out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from benchmarks.full_size.inputs import Size, conditioning, latents
from benchmarks.full_size.measure import measure
from lyra_ns.decoder.conditioning import Conditioning
from lyra_ns.decoder.config import DecoderConfig
from lyra_ns.decoder.model import LatentGaussianDecoder
from lyra_ns.decoder.pruned_head import pruned_gaussians
from lyra_ns.gaussians import Gaussians, num_kept

PRUNE_RATIO = 0.8
"""Share of Gaussians that the released models drop."""


@dataclass(frozen=True)
class Way:
    """One way to compute the forward pass."""

    name: str
    """What tables call it."""
    config: DecoderConfig
    """Sizes and choices of the decoder."""
    head_of_kept: bool
    """Whether the head computes kept Gaussians only; otherwise all, which are then sorted and cut."""


def ways() -> list[Way]:
    """As the official code computes, our plain path, and the fast ones."""
    plain: dict[str, Any] = {"ssd_backend": "mamba_ssm", "attention": "cudnn"}
    return [
        Way("as the official code computes", DecoderConfig(parity=True, **plain), False),
        Way("plain", DecoderConfig(**plain), False),
        Way("fast", DecoderConfig(), True),
        Way("fast, low-precision attention", DecoderConfig(attention="fp8"), True),
    ]


def ablations() -> list[Way]:
    """The network without Mamba, whose blocks are all attention."""
    return [
        Way("plain, no Mamba", DecoderConfig(pattern="T", attention="cudnn"), False),
        Way("fast, no Mamba", DecoderConfig(pattern="T"), True),
    ]


def decoder_of(config: DecoderConfig, device: torch.device | str) -> LatentGaussianDecoder:
    """A decoder of random weights, the same for every precision, that reads its rays and attends unevenly."""
    torch.manual_seed(0)
    drawn = LatentGaussianDecoder(replace(config, parity=False))
    with torch.no_grad():
        for name, parameter in drawn.named_parameters():
            if "plucker_embed.proj" in name:  # zero at the start of a training
                parameter.normal_(std=0.05)
            if name.endswith("qkv.weight"):  # so small at the start that all tokens weigh the same
                parameter.mul_(3)
    decoder = LatentGaussianDecoder(config)
    decoder.load_state_dict(drawn.state_dict())
    return decoder.to(device).eval()


def reconstruct(way: Way, decoder: LatentGaussianDecoder, z: torch.Tensor, given: Conditioning) -> Gaussians:
    """Pruned Gaussians [1, K]."""
    if way.head_of_kept:
        return pruned_gaussians(decoder, decoder.encode(z, given.plucker), z.shape, given.rays, PRUNE_RATIO)
    gaussians = decoder(z, given)
    order = gaussians.opacities.argsort(dim=-1, descending=True, stable=True)
    return gaussians.select(order[:, : num_kept(gaussians.num, PRUNE_RATIO)])


@torch.no_grad()
def forward_rows(
    views: tuple[int, ...], size: Size, device: str, chosen: list[Way], repetitions: int
) -> list[dict[str, Any]]:
    """Time and memory of each way for each number of trajectories."""
    rows = []
    for way in chosen:
        decoder = decoder_of(way.config, device)
        for num_views in views:
            z, given = latents(num_views, size, device), conditioning(num_views, size, device)
            measured = measure(partial(reconstruct, way, decoder, z, given), repetitions)
            rows.append({"way": way.name, "num_views": num_views, **measured.row()})
            print(rows[-1], flush=True)
    return rows


@torch.no_grad()
def error_rows(size: Size, device: str, num_views: int = 1) -> list[dict[str, Any]]:
    """Relative error of each way's raw head outputs against the same weights all in float32."""
    z, given = latents(num_views, size, device), conditioning(num_views, size, device)
    exact_config = DecoderConfig(trunk_dtype="float32", ssd_backend="chunked", attention="torch")

    def raw_of(config: DecoderConfig) -> torch.Tensor:
        return decoder_of(config, device).raw(z, given.plucker).float()

    exact = raw_of(exact_config)
    rows = []
    for way in ways():
        error = (raw_of(way.config) - exact).norm() / exact.norm()
        rows.append({"way": way.name, "num_views": num_views, "relative_error": float(error)})
        print(rows[-1], flush=True)
    return rows
