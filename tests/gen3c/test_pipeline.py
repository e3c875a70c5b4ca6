"""Gen3CPipeline on small random weights: conditioning, guidance, noise, codec, text, saving and bad input."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lyra_ns.gen3c.inputs import UnsafeContent
from lyra_ns.gen3c.pipeline import Gen3CPipeline, gen3c_scheduler
from tests.helpers.small_gen3c import (
    HEIGHT,
    NUM_FRAMES,
    STATE_ROUNDING,
    TEXT_CHANNELS,
    WIDTH,
    drawn,
    small_autoencoder,
    small_transformer,
)


@pytest.fixture(scope="module")
def pipeline() -> Gen3CPipeline:
    return with_transformer(small_transformer())


def with_transformer(transformer: Any, **parts: Any) -> Gen3CPipeline:
    pipeline = Gen3CPipeline(transformer, small_autoencoder(), gen3c_scheduler(), **parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def warps() -> tuple[Tensor, Tensor]:
    """One 3D buffer for each of two samples, with holes."""
    colours = drawn(2, NUM_FRAMES, 1, 3, HEIGHT, WIDTH).clamp(-1, 1)
    masks = (drawn(2, NUM_FRAMES, 1, 1, HEIGHT, WIDTH, seed=1) > -0.5).float()
    return torch.where(masks > 0, colours, -1.0), masks


@pytest.fixture(scope="module")
def image(warps: tuple[Tensor, Tensor]) -> Tensor:
    return warps[0][:, 0, 0]


@pytest.fixture(scope="module")
def buffers(pipeline: Gen3CPipeline, warps: tuple[Tensor, Tensor]) -> Tensor:
    return pipeline.encode_buffers(*warps)


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def run(pipeline: Gen3CPipeline, image: Tensor, buffers: Tensor, **arguments: Any) -> Tensor:
    given = {"num_inference_steps": 3, "generator": seeded(0, 1)[: len(image)]} | arguments
    return pipeline(image, buffers, **given)


@pytest.mark.slow
def test_importing_the_room_loads_no_diffusers() -> None:
    code = (
        "import sys, lyra_ns.gen3c.sampling, lyra_ns.gen3c.transformer, "
        "lyra_ns.gen3c.convert, lyra_ns.gen3c.convert, lyra_ns.cli.decoder\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('diffusers', 'transformers')])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_latents_are_those_of_the_stored_data(pipeline: Gen3CPipeline) -> None:
    """0.5 (z - mean) / std with a column for each latent frame, and back."""
    video = drawn(1, 3, NUM_FRAMES, HEIGHT, WIDTH).clamp(-1, 1)
    raw = pipeline.vae.encode(video).latent_dist.mode()
    mean = torch.tensor(pipeline.vae.config.latents_mean).view(16, 16)[:, :3, None, None]
    std = torch.tensor(pipeline.vae.config.latents_std).view(16, 16)[:, :3, None, None]
    latents = pipeline.encode_video(video)
    torch.testing.assert_close(latents, 0.5 * (raw - mean) / std)
    torch.testing.assert_close(
        pipeline.decode_latents(latents), pipeline.vae.decode(raw).sample, atol=1e-4, rtol=0
    )
    # The tokenizer is causal, so the first frame alone has the first latent frame of the whole video.
    torch.testing.assert_close(pipeline.encode_video(video[:, :, :1]), latents[:, :, :1])


def test_buffers_are_encoded_colours_and_masks(
    pipeline: Gen3CPipeline, warps: tuple[Tensor, Tensor], buffers: Tensor
) -> None:
    colours, masks = warps
    assert buffers.shape == (2, 64, 3, 4, 6)
    torch.testing.assert_close(buffers[:, :16], pipeline.encode_video(colours[:, :, 0].transpose(1, 2)))
    shown = (masks[:, :, 0] * 2 - 1).repeat(1, 1, 3, 1, 1).transpose(1, 2)
    torch.testing.assert_close(buffers[:, 16:32], pipeline.encode_video(shown))
    assert not buffers[:, 32:].any()
    both = pipeline.encode_buffers(colours.repeat(1, 1, 2, 1, 1, 1), masks.repeat(1, 1, 2, 1, 1, 1))
    torch.testing.assert_close(both, buffers[:, :32].repeat(1, 2, 1, 1, 1))
    with pytest.raises(ValueError, match="reads 2 3D buffers, found 3"):
        pipeline.encode_buffers(colours.repeat(1, 1, 3, 1, 1, 1), masks.repeat(1, 1, 3, 1, 1, 1))
    with pytest.raises(ValueError, match="between 0"):
        pipeline.encode_buffers(colours, masks * 2 - 1)


def test_channels_go_in_the_official_order(pipeline: Gen3CPipeline, image: Tensor, buffers: Tensor) -> None:
    """[latents | known | buffers | padding]; without buffers and text, but with the frame, for guidance."""
    seen = []
    embedding = pipeline.transformer.patch_embed
    hook = embedding.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    texts = []
    kept = pipeline.transformer.transformer_blocks[0].register_forward_pre_hook(
        lambda _, inputs: texts.append(inputs[1])
    )
    prompt, negative = drawn(1, 5, TEXT_CHANNELS), drawn(1, 5, TEXT_CHANNELS, seed=1)
    run(
        pipeline, image, buffers, prompt_embeds=prompt, negative_prompt_embeds=negative, num_inference_steps=2
    )
    hook.remove()
    kept.remove()
    assert len(seen) == 4
    given, without = seen[:2]
    assert given.shape == (2, 82, 3, 4, 6)
    first = torch.tensor([1.0, 0.0, 0.0]).view(3, 1, 1).expand(2, 3, 4, 6)
    assert torch.equal(given[:, 16], first)
    assert torch.equal(given[:, 17:81], buffers)
    assert not given[:, 81].any()
    assert torch.equal(without[:, :17], given[:, :17])
    assert not without[:, 17:].any()
    assert torch.equal(texts[0], prompt.expand(2, -1, -1))
    assert torch.equal(texts[1], negative.expand(2, -1, -1))


def test_guidance_is_gen3cs(pipeline: Gen3CPipeline, image: Tensor, buffers: Tensor) -> None:
    """One step from sigma to 0 gives x0, which is affine in F: so is it in g, and g = 0 sees no negative."""
    arguments = {"num_inference_steps": 1, "prompt_embeds": drawn(1, 5, TEXT_CHANNELS)}
    none, one, two = (run(pipeline, image, buffers, guidance=g, **arguments) for g in (0.0, 1.0, 2.0))
    # Each side is a difference of two, and each of these carries the rounding of the noise that it began as.
    rounding = 2 * STATE_ROUNDING
    torch.testing.assert_close(two - one, one - none, atol=rounding, rtol=1e-4)
    assert (one - none)[:, :, 1:].abs().max() > 5 * rounding
    without = run(pipeline, image, torch.zeros_like(buffers), guidance=0.0, num_inference_steps=1)
    torch.testing.assert_close(none - without, one - none, atol=rounding, rtol=1e-4)


def test_guidance_zero_saves_half_of_the_calls(
    pipeline: Gen3CPipeline, image: Tensor, buffers: Tensor
) -> None:
    calls = []
    hook = pipeline.transformer.register_forward_pre_hook(lambda *_: calls.append(1))
    run(pipeline, image, buffers, guidance=0.0)
    assert len(calls) == 3
    run(pipeline, image, buffers, guidance=0.5)
    hook.remove()
    assert len(calls) == 3 + 6


def test_both_forms_of_the_padding_are_equal(image: Tensor, buffers: Tensor, pipeline: Gen3CPipeline) -> None:
    appended = small_transformer("appended")
    assert appended.config.in_channels == 81
    appended.load_state_dict(pipeline.transformer.state_dict(), strict=True)
    found = run(with_transformer(appended), image, buffers)
    torch.testing.assert_close(found, run(pipeline, image, buffers))


def test_samples_do_not_depend_on_their_neighbours(
    pipeline: Gen3CPipeline, image: Tensor, buffers: Tensor
) -> None:
    both = run(pipeline, image, buffers)
    alone = run(pipeline, image[1:], buffers[1:], generator=seeded(1))
    torch.testing.assert_close(both[1:], alone, atol=1e-5, rtol=1e-4)
    same = run(pipeline, image[:1].repeat(2, 1, 1, 1), buffers[:1].repeat(2, 1, 1, 1, 1), shared_noise=True)
    torch.testing.assert_close(same[0], same[1])
    torch.testing.assert_close(same[:1], both[:1], atol=1e-5, rtol=1e-4)


def test_the_first_frame_is_kept(pipeline: Gen3CPipeline, image: Tensor, buffers: Tensor) -> None:
    latents = run(pipeline, image, buffers, num_inference_steps=35)
    assert latents.shape == (2, 16, 3, 4, 6)
    assert latents.dtype == torch.float32
    distance = (latents[:, :, :1] - pipeline.encode_video(image[:, :, None])).abs().max()
    assert 0 < distance < 0.02
    assert latents.isfinite().all()


@pytest.mark.slow
def test_what_is_saved_runs_as_before(
    pipeline: Gen3CPipeline, image: Tensor, buffers: Tensor, tmp_path: Path
) -> None:
    pipeline.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "model_index.json",
        "transformer",
        "vae",
        "scheduler",
    }
    loaded = Gen3CPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert (loaded.num_buffers, loaded.text_encoder, loaded.safety_checker) == (2, None, None)
    assert loaded.scheduler.config.sigma_min == 2e-4
    assert torch.equal(run(loaded, image, buffers), run(pipeline, image, buffers))
    # Not the tokenizer: torch cannot pool bfloat16 on a CPU.
    types = {"transformer": torch.bfloat16, "default": torch.float32}
    half = Gen3CPipeline.from_pretrained(tmp_path, torch_dtype=types)
    half.set_progress_bar_config(disable=True)
    assert (half.transformer.dtype, half.vae.dtype) == (torch.bfloat16, torch.float32)
    found, expected = run(half, image, buffers), run(pipeline, image, buffers)
    assert found.dtype == torch.float32
    assert (found - expected).norm() < 0.1 * expected.norm()


def t5() -> tuple[Any, Any]:
    """A T5 encoder of one layer and a tokenizer that knows three words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

    words = {"<pad>": 0, "<unk>": 1, "a": 2, "red": 3, "room": 4}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    config = T5Config(
        vocab_size=5, d_model=TEXT_CHANNELS, d_kv=8, d_ff=16, num_layers=1, num_heads=2, dropout_rate=0.0
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>")
    return T5EncoderModel(config).eval(), fast


class Checker:
    """Refuses what is red, and makes the rest black."""

    def check_text_safety(self, prompt: str) -> bool:
        return "red" not in prompt

    def check_video_safety(self, frames: np.ndarray) -> np.ndarray | None:
        return None if frames[..., 0].mean() > 200 else np.zeros_like(frames)


@pytest.mark.slow
def test_texts_are_padded_with_zeros_and_cut(
    image: Tensor, buffers: Tensor, pipeline: Gen3CPipeline, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    text_encoder, tokenizer = t5()
    reading = with_transformer(pipeline.transformer, text_encoder=text_encoder, tokenizer=tokenizer)
    embeddings = reading.encode_prompt(["a room", "a red room"])
    assert embeddings.shape == (2, 512, TEXT_CHANNELS)
    assert embeddings[0, :2].abs().min() > 0
    assert not embeddings[0, 2:].any()
    assert not embeddings[1, 3:].any()
    alone = text_encoder(torch.tensor([[2, 4]])).last_hidden_state
    torch.testing.assert_close(embeddings[0, :2], alone[0], atol=1e-5, rtol=1e-4)
    assert not reading.encode_prompt([None]).any()
    reading.encode_prompt(["a " * 600])
    assert "a text has 600 tokens, cut to 512" in caplog.text
    given = reading.encode_prompt(["a room"]), reading.encode_prompt(["red"])
    found = run(reading, image, buffers, prompt="a room", negative_prompt="red")
    expected = run(pipeline, image, buffers, prompt_embeds=given[0], negative_prompt_embeds=given[1])
    assert torch.equal(found, expected)
    assert not torch.equal(found, run(reading, image, buffers, prompt="a room"))
    reading.save_pretrained(tmp_path)
    loaded = Gen3CPipeline.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded.encode_prompt(["a room"]), given[0])


def test_the_safety_checker_sees_texts_and_videos(
    pipeline: Gen3CPipeline, image: Tensor, buffers: Tensor
) -> None:
    shown: list[str] = []
    text_encoder, tokenizer = t5()
    safe = with_transformer(
        pipeline.transformer, text_encoder=text_encoder, tokenizer=tokenizer, safety_checker=Checker()
    )
    with pytest.raises(UnsafeContent, match="'a red room': use another"):
        safe.encode_prompt(["a room", "a red room"])
    black = safe.decode_latents(drawn(1, 16, 2, 4, 6))
    # What nobody wrote is not shown to the checker.
    safe.safety_checker.check_text_safety = lambda text: shown.append(text) or True
    run(safe, image[:1], buffers[:1], prompt="a room")
    assert shown == ["a room"]
    run(safe, image[:1], buffers[:1], prompt="a room", negative_prompt="red")
    assert shown == ["a room", "a room", "red"]
    assert black.shape == (1, 3, 9, HEIGHT, WIDTH)
    assert torch.equal(black, torch.full_like(black, -1.0))
    safe.safety_checker.check_video_safety = lambda frames: None
    with pytest.raises(UnsafeContent, match="refuses the video"):
        safe.decode_latents(drawn(1, 16, 2, 4, 6))


def test_bad_input_is_told(pipeline: Gen3CPipeline, image: Tensor, buffers: Tensor) -> None:
    for arguments, message in [
        ({"image": image[..., :40]}, "multiples of 16, found 32x40"),
        ({"buffers": buffers[:, :32]}, r"must have the shape \(2, 64, 3, 4, 6\), found \(2, 32, 3, 4, 6\)"),
        ({"buffers": buffers.repeat(1, 1, 6, 1, 1)}, r"up to \[16, 32, 32\] .*, found \[18, 4, 6\]"),
        ({"num_inference_steps": 0}, "at least 1 step"),
        ({"guidance": float("nan")}, "finite guidance"),
        ({"generator": seeded(0, 1, 2)}, "expected one generator or 2, found 3"),
        ({"prompt": "a room"}, "the pipeline has no T5"),
        ({"prompt": "a", "prompt_embeds": drawn(1, 5, TEXT_CHANNELS)}, "not both"),
    ]:
        with pytest.raises(ValueError, match=message):
            run(pipeline, **{"image": image, "buffers": buffers} | arguments)
    with pytest.raises(ValueError, match="every sample or for none"):
        pipeline.encode_prompt(["a", None])


def test_other_parts_are_refused(pipeline: Gen3CPipeline) -> None:
    from diffusers import CosmosTransformer3DModel, EDMEulerScheduler

    gen3cs = {"sigma_min": 2e-4, "sigma_max": 80.0, "sigma_data": 0.5, "rho": 7.0}
    for scheduler, message in [
        (EDMEulerScheduler(), r"has sigma_min 0.0002, found sigma_min 0.002: use gen3c_scheduler\(\)"),
        (EDMEulerScheduler(**gen3cs | {"sigma_data": 1.0}), "has sigma_data 0.5, found sigma_data 1.0: use"),
        (EDMEulerScheduler(**gen3cs | {"sigma_max": 700.0}), "sigma_max 80.0, found sigma_max 700.0: use"),
        (EDMEulerScheduler(**gen3cs, final_sigmas_type="sigma_min"), "final_sigmas_type zero, found"),
    ]:
        with pytest.raises(ValueError, match=message):
            Gen3CPipeline(pipeline.transformer, pipeline.vae, scheduler)
    with torch.device("meta"):
        other = CosmosTransformer3DModel(
            in_channels=17, num_attention_heads=2, attention_head_dim=24, num_layers=1
        )
    with pytest.raises(ValueError, match="give a GEN3C checkpoint"):
        Gen3CPipeline(other, pipeline.vae, gen3c_scheduler())
