"""`python -m benchmarks.kernels.choices`: the ways of kernels/choices.py beside each other, in the decoder.

For each choice the time of the trunk without attention at the paper's size (all blocks are Mamba blocks, as
many as the decoder has) and the error of the raw head outputs against the same weights all in float32, for
one trajectory through the whole network. The official regime's error stands in the first line. Needs a CUDA
device.
"""

from __future__ import annotations

import torch
import tyro
from torch import Tensor

from benchmarks.full_size.forward import decoder_of
from benchmarks.full_size.inputs import Size, conditioning, latents
from benchmarks.full_size.measure import measure
from lyra_ns.decoder import DecoderConfig
from lyra_ns.kernels.choices import chosen
from lyra_ns.ssd import ScanName, why_no_mamba_ssm

WAYS: dict[str, dict[str, bool]] = {
    "as before": {},
    "round state updates": {"round_state_updates": True},
    "fuse residuals": {"fuse_residuals": True},
    "both": {"round_state_updates": True, "fuse_residuals": True},
}
"""Choices by the name that the table gives them."""


@torch.no_grad()
def trunk_milliseconds(tokens: int, num_blocks: int, repetitions: int) -> dict[str, float]:
    """Time of that many Mamba blocks, by way."""
    decoder = decoder_of(DecoderConfig(pattern="M", depth=num_blocks), "cuda")
    stream = torch.randn(1, tokens, decoder.config.width, device="cuda")
    times = {}
    for name, changes in WAYS.items():
        with chosen(**changes), torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
            times[name] = measure(lambda: decoder.trunk(stream), repetitions).milliseconds
    return times


@torch.no_grad()
def raw_errors(size: Size) -> dict[str, float]:
    """Relative error of the raw outputs of one trajectory, by way, and of the official regime."""
    z, given = latents(1, size, "cuda"), conditioning(1, size, "cuda")

    def raw_of(config: DecoderConfig) -> Tensor:
        return decoder_of(config, "cuda").raw(z, given.plucker).float()

    exact = raw_of(DecoderConfig(trunk_dtype="float32", ssd_backend="chunked", attention="torch"))
    scan: ScanName = "chunked" if why_no_mamba_ssm() else "mamba_ssm"
    found = {"official": raw_of(DecoderConfig(parity=True, ssd_backend=scan, attention="cudnn"))}
    for name, changes in WAYS.items():
        with chosen(**changes):
            found[name] = raw_of(DecoderConfig())
    return {name: float((raw - exact).norm() / exact.norm()) for name, raw in found.items()}


def main(tokens: int = 337_920, num_blocks: int = 14, repetitions: int = 3) -> None:
    """Measure and print."""
    errors = raw_errors(Size())
    print(f"{'way':<24}{'trunk ms':>10}{'raw error':>12}", flush=True)
    print(f"{'official':<24}{'':>10}{errors['official']:>12.4%}", flush=True)
    for name, time in trunk_milliseconds(tokens, num_blocks, repetitions).items():
        print(f"{name:<24}{time:>10.2f}{errors[name]:>12.4%}", flush=True)


if __name__ == "__main__":
    tyro.cli(main)
