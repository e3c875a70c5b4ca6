"""The decoder on a GPU: same numbers as on the CPU, in every regime, and through CUDA graphs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lyra_ns.decoder.blocks import GaussianDeconvolution
from lyra_ns.decoder.conditioning import Conditioning
from lyra_ns.decoder.config import DecoderConfig
from lyra_ns.decoder.cuda_graphs import GraphedDecoder
from lyra_ns.decoder.model import LatentGaussianDecoder
from tests.helpers import golden

pytestmark = pytest.mark.gpu


def make_decoder(**changes: Any) -> LatentGaussianDecoder:
    """A small decoder on the GPU with the deterministic weights of the golden test."""
    sizes: dict[str, Any] = {"width": 128, "depth": 4, "pattern": "1M1T", "num_heads": 2, "state_size": 64}
    decoder = LatentGaussianDecoder(DecoderConfig(**{**sizes, **changes}))
    decoder.load_state_dict(golden.weights({key: value.shape for key, value in decoder.state_dict().items()}))
    return decoder.cuda()


def golden_inputs(device: str = "cuda") -> tuple[Tensor, Conditioning]:
    """The golden test's latents and conditioning."""
    return golden.latents().to(device), Conditioning(golden.plucker(), golden.rays()).to(device)


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference relative to the expected norm."""
    return ((found.cpu().double() - expected.cpu().double()).norm() / expected.cpu().double().norm()).item()


def test_golden_network_in_float32() -> None:
    """The golden deconvolution and Gaussian numbers on the GPU, without reduced precision anywhere."""
    decoder = make_decoder(
        width=512,
        depth=16,
        pattern="7M1T",
        num_heads=8,
        state_size=256,
        trunk_dtype="float32",
        ssd_backend="chunked",
    )
    latents, conditioning = golden_inputs()
    with torch.no_grad():
        raw = decoder.raw(latents, conditioning.plucker)
        first = decoder.gaussians(raw, conditioning).means[0, 0]
    assert raw.abs().mean().item() == pytest.approx(0.6562442, rel=1e-4)
    assert first.tolist() == pytest.approx([-0.345675, 29.5462, -22.7035], rel=1e-3)


@pytest.mark.parametrize(("changes", "tolerance"), [({}, 3e-2), ({"parity": True}, 6e-2)])
def test_bfloat16_regimes_stay_close(changes: dict[str, Any], tolerance: float) -> None:
    """Automatic bfloat16 blocks with a float32 head, and the official regime, near the float32 network."""
    latents, conditioning = golden_inputs()
    exact = make_decoder(trunk_dtype="float32", ssd_backend="chunked").raw(latents, conditioning.plucker)
    decoder = make_decoder(**changes)
    raw = decoder.raw(latents, conditioning.plucker)
    assert raw.dtype == (torch.bfloat16 if changes else torch.float32)
    assert 1e-5 < relative_error(raw, exact) < tolerance
    assert decoder(latents, conditioning).means.dtype == torch.float32


@pytest.mark.parametrize("changes", [{}, {"parity": True}])
def test_chain_of_branches_equals_blocks(changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Additions inside the norms' kernels: the same numbers as block after block, up to one rounding."""
    latents, conditioning = golden_inputs()
    decoder = make_decoder(**changes)
    with torch.no_grad():
        chain = decoder.raw(latents, conditioning.plucker)
        monkeypatch.setattr("lyra_ns.decoder.model.suits_chain", lambda scan: False)
        plain = decoder.raw(latents, conditioning.plucker)
    exact = make_decoder(trunk_dtype="float32", ssd_backend="chunked").raw(latents, conditioning.plucker)
    assert relative_error(chain, exact) < 1.05 * relative_error(plain, exact) + 1e-4


def test_deconvolution_equals_cudnn() -> None:
    """The matrix product and the library's transposed convolution give the same values and gradients."""
    torch.manual_seed(0)
    module = GaussianDeconvolution(64, 8, 2).cuda().double()
    tokens = torch.randn(2, 3, 10, 16, 64, dtype=torch.float64, device="cuda", requires_grad=True)
    found = module(tokens)
    expected = torch.nn.ConvTranspose3d.forward(module, tokens.movedim(-1, 1)).movedim(1, -1)
    torch.testing.assert_close(found, expected)
    weighting, leaves = torch.randn_like(expected), [tokens, module.weight, module.bias]
    torch.testing.assert_close(
        torch.autograd.grad((found * weighting).sum(), leaves),
        torch.autograd.grad((expected * weighting).sum(), leaves),
    )


def training_step(
    run: Any, decoder: LatentGaussianDecoder, latents: Tensor, conditioning: Conditioning
) -> Tensor:
    """Adds the gradients of one loss to the decoder's parameters and returns the loss."""
    gaussians = run(latents, conditioning)
    loss = gaussians.rgb.square().mean() + gaussians.opacities.mean() + 1e-4 * gaussians.means.square().mean()
    loss.backward()
    return loss.detach()


def gradients(decoder: LatentGaussianDecoder) -> list[Tensor]:
    """Copies of all gradients."""
    return [p.grad.clone() for p in decoder.parameters() if p.grad is not None]


@pytest.mark.parametrize("recompute", ["none", "states", "scans", "all"])
def test_graphs_give_the_same_training_step(recompute: str) -> None:
    """Loss and gradients through graphs, over two shapes, changed inputs and changed weights."""
    decoder = make_decoder(recompute=recompute)
    graphed = GraphedDecoder(decoder)
    latents, conditioning = golden_inputs()
    rays = conditioning.rays
    one_view = Conditioning(
        conditioning.plucker[:, :1],
        type(rays)(rays.origins[:, :1], rays.directions[:, :1], rays.cell_size[:, :1]),
    )
    cases = [(latents, conditioning), (latents[:, :1], one_view), (latents * 0.5, conditioning)]
    for inputs in cases * 2:
        results = []
        for run in (decoder, graphed):
            decoder.zero_grad(set_to_none=True)
            results.append((training_step(run, decoder, *inputs), gradients(decoder)))
        (loss, plain), (graph_loss, replayed) = results
        assert relative_error(graph_loss, loss) < 1e-3
        assert len(replayed) == len(plain)
        assert max(relative_error(a, b) for a, b in zip(replayed, plain, strict=True)) < 2e-2
        with torch.no_grad():
            for parameter in decoder.parameters():
                parameter.mul_(0.99)
    assert graphed.num_graphs == 2


def test_graphs_accumulate_gradients() -> None:
    """Two replays without clearing gradients in between add up, although a graph reuses its buffers."""
    decoder = make_decoder()
    graphed = GraphedDecoder(decoder)
    latents, conditioning = golden_inputs()
    sums = []
    for run in (decoder, graphed):
        decoder.zero_grad(set_to_none=True)
        for scale in (1.0, 0.3, 2.0):
            training_step(run, decoder, latents * scale, conditioning)
        sums.append(gradients(decoder))
    assert max(relative_error(a, b) for a, b in zip(*reversed(sums), strict=True)) < 2e-2


def test_graphs_step_aside() -> None:
    """In evaluation and without gradients nothing is captured and the decoder runs as it is."""
    decoder = make_decoder()
    graphed = GraphedDecoder(decoder)
    latents, conditioning = golden_inputs()
    with torch.no_grad():
        assert torch.equal(graphed(latents, conditioning).means, decoder(latents, conditioning).means)
    decoder.eval()
    graphed(latents, conditioning)
    assert graphed.num_graphs == 0
