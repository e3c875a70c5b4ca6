"""GEN3C's sampler against closed forms, diffusers' scheduler and the masked formula of the official code."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from lyra_ns.gen3c.pipeline import gen3c_scheduler
from lyra_ns.gen3c.sampling import sample
from tests.helpers.small_gen3c import drawn

SHAPE = (2, 16, 3, 4, 6)
NOTHING_KNOWN = torch.zeros(2, 16, 0, 4, 6)


def sigmas_of(num_steps: int) -> list[float]:
    scheduler = gen3c_scheduler()
    scheduler.set_timesteps(num_steps)
    return scheduler.sigmas.tolist()


def network(scaled: Tensor, noise_label: float) -> Tensor:
    """Something that depends on every frame and on the noise."""
    return torch.tanh(scaled * (1 + noise_label) + scaled.mean(2, keepdim=True))


def test_the_noise_levels_are_the_official_ones() -> None:
    sigmas = sigmas_of(35)
    assert len(sigmas) == 36
    assert sigmas[:3] == pytest.approx([80, 67.13, 56.07], abs=5e-3)
    assert sigmas[-4:] == pytest.approx([0.00134, 0.00055, 0.0002, 0], abs=6e-6)
    assert gen3c_scheduler().init_noise_sigma == pytest.approx(80.00625)


@pytest.mark.parametrize("deviation", [0.3, 2.0])
def test_normal_data_follow_the_closed_form(deviation: float) -> None:
    """For data of deviation s the best x0 is x s^2 / (s^2 + sigma^2): each step is a factor."""
    sigmas, initial = sigmas_of(12), drawn(*SHAPE).double() * 80
    clean_share = {sigma: deviation**2 / (deviation**2 + sigma**2) for sigma in sigmas}
    levels = iter(sigmas)

    def ideal(scaled: Tensor, noise_label: float) -> Tensor:
        sigma = next(levels)
        assert noise_label == pytest.approx(0.25 * torch.tensor(sigma).log().item(), abs=1e-5)
        latents = scaled * (sigma**2 + 0.25) ** 0.5
        from_latents = 0.25 / (sigma**2 + 0.25)
        of_prediction = sigma * 0.5 / (sigma**2 + 0.25) ** 0.5
        return latents * (clean_share[sigma] - from_latents) / of_prediction

    expected = initial
    for sigma, following in pairwise(sigmas):
        expected = expected * (1 + (1 - clean_share[sigma]) * (following - sigma) / sigma)
    found = sample(ideal, sigmas, initial, NOTHING_KNOWN.double(), NOTHING_KNOWN.double())
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_free_frames_take_the_steps_of_diffusers() -> None:
    scheduler = gen3c_scheduler()
    scheduler.set_timesteps(10)
    expected = initial = drawn(*SHAPE) * scheduler.init_noise_sigma
    for time in scheduler.timesteps:
        predicted = network(scheduler.scale_model_input(expected, time), time.item())
        (expected, _) = scheduler.step(predicted, time, expected, return_dict=False)
    found = sample(network, scheduler.sigmas.tolist(), initial, NOTHING_KNOWN, NOTHING_KNOWN)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_known_frames_are_pinned_as_in_the_official_code() -> None:
    """The loop of docs/reference/gen3c.md, "Sampler", as it stands there, with masks over the whole video."""
    sigmas, initial = sigmas_of(35), drawn(*SHAPE).double() * 80
    known, noise = drawn(2, 16, 1, 4, 6, seed=1).double(), drawn(2, 16, 1, 4, 6, seed=2).double()
    first = torch.zeros(1, 1, 3, 1, 1)
    first[:, :, 0] = 1
    pinned_at = []
    x = initial
    for sigma, following in pairwise(sigmas):
        ind = first * float(sigma > 0.001)
        pinned_at.append(bool(ind.any()))
        noisy = (known + noise * 0.001) * ((sigma**2 + 0.25) / (0.001**2 + 0.25)) ** 0.5
        x = ind * noisy + (1 - ind) * x
        predicted = network(x / (sigma**2 + 0.25) ** 0.5, 0.25 * torch.tensor(sigma).log().item())
        x0 = 0.25 / (sigma**2 + 0.25) * x + sigma * 0.5 / (sigma**2 + 0.25) ** 0.5 * predicted
        x0 = ind * known + (1 - ind) * x0
        x = x + (x - x0) / sigma * (following - sigma)
    found = sample(network, sigmas, initial, known, noise)
    torch.testing.assert_close(found, x, rtol=1e-6, atol=1e-6)
    assert pinned_at == [True] * 33 + [False] * 2
    deviation = (found[:, :, :1] - known).abs().max()
    assert 0 < deviation < 0.02


def test_a_step_can_be_watched_and_stopped() -> None:
    steps = []
    sample(
        network,
        sigmas_of(4),
        drawn(*SHAPE),
        NOTHING_KNOWN,
        NOTHING_KNOWN,
        on_step=lambda i, _: steps.append(i),
    )
    assert steps == [0, 1, 2, 3]

    def stop(step: int, latents: Tensor) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample(network, sigmas_of(4), drawn(*SHAPE), NOTHING_KNOWN, NOTHING_KNOWN, on_step=stop)


@pytest.mark.parametrize("sigmas", [[80.0], [1.0, 2.0], [1.0, -1.0], [float("nan"), 0.0]])
def test_noise_levels_must_fall(sigmas: list[float]) -> None:
    with pytest.raises(ValueError, match="falling noise levels"):
        sample(network, sigmas, drawn(*SHAPE), NOTHING_KNOWN, NOTHING_KNOWN)
