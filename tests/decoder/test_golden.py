"""The decoder reproduces, layer by layer, numbers taken from the official network.

Source: docs/reference/decoder.md, "Golden numbers".
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import pytest
import torch
from torch import Tensor

from lyra_ns.decoder.conditioning import Conditioning
from lyra_ns.decoder.config import DecoderConfig
from lyra_ns.decoder.model import LatentGaussianDecoder
from lyra_ns.gaussians import Gaussians, prune
from tests.helpers import golden

# Name of the module, then mean magnitude, first and last number of its output.
STATIC = {
    "patch_embed": (0.7987433, -0.921885, 1.79359),
    "patch_plucker_embed": (0.7974343, 0.502494, -0.98003),
    "enc_blocks.0": (1.651075, -1.02827, 2.26601),
    "enc_blocks.6": (3.396421, 1.9406, 6.71038),
    "enc_blocks.7": (3.445356, 1.76024, 6.87287),
    "enc_blocks.15": (4.756649, 7.51602, 3.36948),
    "enc_norm": (0.7998720, 1.12276, 0.512669),
    "deconv": (0.6562442, -0.873949, -1.1154),
}
DYNAMIC = {
    "patch_embed": STATIC["patch_embed"],
    "patch_plucker_embed": STATIC["patch_plucker_embed"],
    "patch_time_embed": (0.7953956, -0.722117, -0.371958),
    "patch_time_embed_tgt": (0.7981166, -0.806538, 0.130876),
    "enc_blocks.0": (1.998475, -4.53351, -0.0578182),
    "enc_blocks.6": (3.590568, -9.99854, -1.02851),
    "enc_blocks.7": (3.637705, -11.4573, -1.42959),
    "enc_blocks.15": (4.931557, -7.93758, -4.57033),
    "enc_norm": (0.7999508, -1.1598, -0.804486),
    "deconv": (0.6591703, 1.13054, 0.742788),
}
GAUSSIANS = {False: (10.77508, -0.345675, 0.440692), True: (10.79073, -1.84196, 0.586073)}
FIRST_GAUSSIAN = {
    False: "-0.345675 29.5462 -22.7035 0.330136 0.0592631 0.0101472 0.0450169 "
    "0.389749 0.452028 0.467353 0.652186 0.0266036 0.965922 0.563624",
    True: "-1.84196 147.825 -113.9 0.31284 0.0414829 0.0515084 0.0505233 "
    "-0.657832 -0.673526 0.294186 -0.164541 0.571137 0.725227 0.444647",
}


@cache
def run(dynamic: bool) -> tuple[dict[str, Tensor], Gaussians]:
    """Outputs of the watched modules and the Gaussians."""
    decoder = LatentGaussianDecoder(DecoderConfig(use_time=dynamic))
    shapes = {key: value.shape for key, value in decoder.state_dict().items()}
    decoder.load_state_dict(golden.weights(shapes))
    outputs: dict[str, Tensor] = {}

    def watch(name: str) -> None:
        decoder.get_submodule(name).register_forward_hook(lambda *call: outputs.update({name: call[2]}))

    for name in DYNAMIC if dynamic else STATIC:
        watch(name)
    time = golden.time() if dynamic else None
    conditioning = Conditioning(
        golden.plucker(),
        golden.rays(),
        time_source=None if time is None else time[:, :, :-1],
        time_target=None if time is None else time[:, :, -1:],
    )
    with torch.no_grad():
        gaussians = decoder(golden.latents(), conditioning)
    outputs["deconv"] = outputs["deconv"].movedim(-1, 1)  # to the official order, channels before frames
    return outputs, gaussians


def fourteen_columns(gaussians: Gaussians) -> Tensor:
    """The official layout of a Gaussian: position, opacity, scale, rotation, colour."""
    columns = [
        gaussians.means,
        gaussians.opacities[..., None],
        gaussians.scales,
        gaussians.quats,
        gaussians.rgb,
    ]
    return torch.cat(columns, -1)


def summary(tensor: Tensor) -> tuple[float, float, float]:
    """Mean magnitude, first and last number."""
    return tensor.double().abs().mean().item(), tensor.flatten()[0].item(), tensor.flatten()[-1].item()


def cases() -> Iterator[tuple[bool, str]]:
    """Every watched module of both models."""
    yield from ((False, name) for name in STATIC)
    yield from ((True, name) for name in DYNAMIC)


@pytest.mark.slow
@pytest.mark.parametrize(("dynamic", "name"), cases())
def test_layer(dynamic: bool, name: str) -> None:
    """Every layer agrees with the official one."""
    expected = (DYNAMIC if dynamic else STATIC)[name]
    assert summary(run(dynamic)[0][name]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("dynamic", [False, True])
def test_gaussians(dynamic: bool) -> None:
    """Head and output agree."""
    columns = fourteen_columns(run(dynamic)[1])
    assert columns.shape == (1, 2176, 14)
    assert summary(columns) == pytest.approx(GAUSSIANS[dynamic], rel=1e-4)
    expected = [float(number) for number in FIRST_GAUSSIAN[dynamic].split()]
    assert columns[0, 0].tolist() == pytest.approx(expected, rel=1e-4)


def test_prune() -> None:
    """The official share of Gaussians stays, most opaque first."""
    kept = prune(run(False)[1], 0.8)
    assert kept.num == 435
    assert kept.opacities.min().item() == pytest.approx(0.211223, rel=1e-4)
    assert kept.opacities[0, 0].item() == pytest.approx(0.728273, rel=1e-4)
    assert kept.means[0, 0, 0].item() == pytest.approx(46.6831, rel=1e-4)
