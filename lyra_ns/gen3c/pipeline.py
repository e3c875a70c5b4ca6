"""GEN3C as a pipeline of diffusers: first frame and 3D buffers in, video latents out.

Source: docs/reference/gen3c.md, "Conditioning" and "Sampler". diffusers' own CosmosVideoToWorldPipeline
cannot run GEN3C: it takes no 3D buffers, drops guidance at scale 1, and ends its noise levels elsewhere; ours
are a scheduler of diffusers. This module imports diffusers and transformers; the rest of the room does not.

**Not tried on the released weights**, which could not be had: loading, shapes, sampler and saving are proven
on random weights of the exact structure.

Shape letters: B samples, L frames, N buffers, D channels of all buffers, T latent frames, H W image, h w
latent, P and Q texts (B or 1), S and R their tokens, E text channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from diffusers import AutoencoderKLCosmos, CosmosTransformer3DModel, EDMEulerScheduler
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils.torch_utils import randn_tensor
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase, T5EncoderModel

from lyra_ns.codec.base import SIGMA_DATA, LatentStatistics
from lyra_ns.codec.cosmos import CosmosCodec
from lyra_ns.gen3c.inputs import (
    SafetyChecker,
    check_texts,
    checked_video,
    default_negative_prompt,
    encode_buffers,
    encode_texts,
    no_text,
)
from lyra_ns.gen3c.parallel import agreed
from lyra_ns.gen3c.sampling import AUGMENT_SIGMA, sample
from lyra_ns.gen3c.transformer import (
    BUFFER_CHANNELS,
    FPS,
    LATENT_CHANNELS,
    PLAIN,
    Evaluation,
    GuidedDenoiser,
    num_buffers_of,
)

if TYPE_CHECKING:
    from lyra_ns.gen3c.memory import MemorySetup

LEVELS: dict[str, Any] = {
    "sigma_min": 2e-4,
    "sigma_max": 80.0,
    "sigma_data": SIGMA_DATA,
    "sigma_schedule": "karras",
    "rho": 7.0,
    "final_sigmas_type": "zero",
    "prediction_type": "epsilon",
}
"""What the released network was trained and sampled with."""


def gen3c_scheduler() -> EDMEulerScheduler:
    """Noise levels of GEN3C: from 80 to 0.0002, then 0 (other Cosmos models end at 0.002)."""
    return EDMEulerScheduler(**LEVELS)


def check_noise_levels(config: Mapping[str, Any]) -> None:
    """ValueError, naming what differs, unless a scheduler of this configuration has GEN3C's noise levels."""
    differing = [name for name, value in LEVELS.items() if config.get(name) != value]
    if differing:
        expected, found = (
            ", ".join(f"{name} {values.get(name)}" for name in differing) for values in (LEVELS, config)
        )
        raise ValueError(f"GEN3C's scheduler has {expected}, found {found}: use gen3c_scheduler()")


Generators = torch.Generator | Sequence[torch.Generator] | None


class Gen3CPipeline(DiffusionPipeline):
    """Camera-controlled video latents from a first frame and the 3D buffers seen along a camera path.

    >>> pipeline = Gen3CPipeline.from_pretrained(folder, torch_dtype=torch.bfloat16).to("cuda")
    >>> buffers = pipeline.encode_buffers(colours, masks)
    >>> latents = pipeline(image, buffers, generator=torch.Generator().manual_seed(0))
    >>> video = pipeline.decode_latents(latents)

    `folder` is what `ns-lyra convert --config gen3c` writes. T5 (4.9 billion weights) is optional: without it
    texts cannot be encoded, and zeros stand for them, as in the official code with --disable_prompt_encoder.
    A safety checker sees prompts before and videos after; without one nothing is checked.
    """

    model_cpu_offload_seq = "text_encoder->transformer->vae"  # type: ignore[assignment]
    _optional_components = ["text_encoder", "tokenizer", "safety_checker"]  # noqa: RUF012

    def __init__(
        self,
        transformer: CosmosTransformer3DModel,
        vae: AutoencoderKLCosmos,
        scheduler: EDMEulerScheduler,
        text_encoder: T5EncoderModel | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        safety_checker: SafetyChecker | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(
            transformer=transformer,
            vae=vae,
            scheduler=scheduler,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            safety_checker=safety_checker,
        )
        check_noise_levels(self.scheduler.config)
        self.num_buffers = num_buffers_of(self.transformer.config)
        self.evaluation: Evaluation = PLAIN
        """How the network is called: one batch, two processes, predicted steps, or plainly."""
        self.memory_setup: MemorySetup | None = None
        """What `apply_memory_policy` has set up; None for nothing."""
        self._codec: CosmosCodec | None = None
        self._codec_state: tuple[Any, ...] = ()

    @property
    def memory_policy(self) -> str | None:
        """Name of the policy that `apply_memory_policy` has set up; None for none."""
        return None if self.memory_setup is None else self.memory_setup.policy

    @property
    def codec(self) -> CosmosCodec:
        """The tokenizer behind the package's codec interface, with the pipeline's own weights."""
        vae, device = self.vae, self._execution_device
        if self._codec is None or self._codec_state != (vae, vae.device, vae.dtype):
            is_fast = vae.device.type == "cuda" and vae.dtype == torch.bfloat16
            name = f"cosmos:{self.name_or_path or 'gen3c'}"
            self._codec = CosmosCodec(vae, _statistics(vae.config), name, "auto" if is_fast else "plain")
            self._codec_state = (vae, vae.device, vae.dtype)
        # With offloading the weights lie on the CPU until they are called, and what they return does not.
        self._codec.statistics = self._codec.statistics.to(device)
        return self._codec

    def encode_video(self, video: Float[Tensor, "B 3 L H W"]) -> Float[Tensor, "B 16 T h w"]:
        """Latents in diffusion space, float32, of colours from -1 to 1; L must be 8k + 1."""
        return self.codec.to_diffusion(self.codec.encode(video.to(self._execution_device)))

    def encode_buffers(
        self, colours: Float[Tensor, "B L N 3 H W"], masks: Float[Tensor, "B L N 1 H W"]
    ) -> Float[Tensor, "B D T h w"]:
        """3D buffers as `__call__` takes them: colours -1 to 1 (-1 in holes), masks 1 where something is."""
        device = self._execution_device
        return encode_buffers(self.codec, colours.to(device), masks.to(device), self.num_buffers)

    def decode_latents(self, latents: Float[Tensor, "B 16 T h w"]) -> Float[Tensor, "B 3 L H W"]:
        """Videos, float32, colours about -1 to 1; UnsafeContent if there is a safety checker and it refuses.

        Without a checker they are not clamped; a checker's frames went through 8 bits.
        """
        video = self.codec.decode(self.codec.from_diffusion(latents.to(self._execution_device).float()))
        self.maybe_free_model_hooks()
        if self.safety_checker is None:
            return video
        return torch.stack([checked_video(self.safety_checker, clip) for clip in video])

    def encode_prompt(self, texts: Sequence[str | None]) -> Float[Tensor, "B S E"]:
        """Embeddings of texts; None stands for no text at all, which needs no T5.

        They can be kept and given as `prompt_embeds`. ValueError if a text is given and T5 is not there, or
        if texts and None come together; UnsafeContent if the safety checker refuses a text.
        """
        device = self._execution_device
        given = [text for text in texts if text is not None]
        if not given:
            return no_text(len(texts), self.transformer.config.text_embed_dim, device)
        if len(given) < len(texts):
            raise ValueError('give a text for every sample or for none: use "" for an empty one')
        if self.text_encoder is None or self.tokenizer is None:
            raise ValueError(
                "a text was given, but the pipeline has no T5: load google-t5/t5-11b and give it as "
                "text_encoder= and tokenizer=, give prompt_embeds, or leave the text out"
            )
        if self.safety_checker is not None:
            check_texts(self.safety_checker, given)
        return encode_texts(given, self.tokenizer, self.text_encoder, device)

    @torch.no_grad()
    def __call__(
        self,
        image: Float[Tensor, "B 3 H W"],
        buffers: Float[Tensor, "B D T h w"],
        *,
        prompt: str | None = None,
        negative_prompt: str | None = None,
        prompt_embeds: Float[Tensor, "P S E"] | None = None,
        negative_prompt_embeds: Float[Tensor, "Q R E"] | None = None,
        guidance: float = 1.0,
        num_inference_steps: int = 35,
        augment_sigma: float = AUGMENT_SIGMA,
        fps: int = FPS,
        generator: Generators = None,
        shared_noise: bool = False,
        on_step: Callable[[int, Tensor], None] | None = None,
    ) -> Float[Tensor, "B 16 T h w"]:
        """Latents in diffusion space, float32, as they are stored on disk.

        `image` is the first frame, colours -1 to 1; `buffers` are those of `encode_buffers`. Embeddings, or
        one prompt for all samples, or neither; the negative ones default to the Cosmos text where T5 encodes
        and to zeros otherwise. `guidance` is GEN3C's (GuidedDenoiser), 0 runs the network half as often.
        With a list of generators each sample has its own, and does not depend on its neighbours; a generator
        on the CPU draws the same for every device. `shared_noise` draws once for all samples, as the official
        data were made. `on_step(step, latents)` is called after each step. ValueError for sizes that do not
        fit.
        """
        self._check(image, buffers, num_inference_steps, guidance)
        device, num_samples = self._execution_device, len(image)
        texts = self._texts(prompt, negative_prompt, prompt_embeds, negative_prompt_embeds, num_samples)
        known = self.encode_video(image[:, :, None])
        shape = (num_samples, LATENT_CHANNELS, *buffers.shape[2:])
        initial = self._noise(shape, generator, shared_noise) * self.scheduler.init_noise_sigma
        known_noise = self._noise(tuple(known.shape), generator, shared_noise)
        if (cache := self.evaluation.step_cache) is not None:
            cache.start(num_inference_steps)
        denoiser = GuidedDenoiser(
            self.transformer, *texts, buffers.to(device), known.shape[2], guidance, fps, self.evaluation
        )
        self.scheduler.set_timesteps(num_inference_steps)
        with self.progress_bar(total=num_inference_steps) as bar:

            def count(step: int, latents: Tensor) -> None:
                bar.update()
                if on_step is not None:
                    on_step(step, latents)

            latents = sample(
                denoiser, self.scheduler.sigmas.tolist(), initial, known, known_noise, augment_sigma, count
            )
        if cache is not None:
            cache.free()
        self.maybe_free_model_hooks()
        return latents

    def _noise(self, shape: tuple[int, ...], generator: Generators, is_shared: bool) -> Tensor:
        """Standard normal float32 noise, drawn for all samples or once."""
        own = list(generator) if isinstance(generator, Sequence) else generator
        if isinstance(own, list) and len(own) not in (1, shape[0]):
            raise ValueError(f"expected one generator or {shape[0]}, found {len(own)}: give each its own")
        if is_shared:
            own = own[0] if isinstance(own, list) else own
            noise = randn_tensor((1, *shape[1:]), own, self._execution_device, torch.float32)
            return self._agreed(noise).expand(shape)
        return self._agreed(randn_tensor(shape, own, self._execution_device, torch.float32))

    def _agreed(self, noise: Tensor) -> Tensor:
        """The same noise on all processes, where several of them make one clip."""
        halves = self.evaluation.halves
        if halves is not None:
            return agreed(noise, halves.group)
        return noise if self.transformer._parallel_config is None else agreed(noise)

    def _texts(
        self,
        prompt: str | None,
        negative_prompt: str | None,
        prompt_embeds: Tensor | None,
        negative_prompt_embeds: Tensor | None,
        num_samples: int,
    ) -> tuple[Tensor, Tensor]:
        """Embeddings [B, S, E] of what is wanted and of what is not, on the device of the network."""
        if prompt_embeds is None:
            prompt_embeds = self.encode_prompt([prompt])
        elif prompt is not None:
            raise ValueError("give prompt or prompt_embeds, not both")
        if negative_prompt_embeds is None:
            if negative_prompt is None and prompt is not None:
                negative_prompt = default_negative_prompt()
            negative_prompt_embeds = self.encode_prompt([negative_prompt])
        elif negative_prompt is not None:
            raise ValueError("give negative_prompt or negative_prompt_embeds, not both")
        device = self._execution_device
        return (
            prompt_embeds.to(device).expand(num_samples, -1, -1),
            negative_prompt_embeds.to(device).expand(num_samples, -1, -1),
        )

    def _check(self, image: Tensor, buffers: Tensor, num_steps: int, guidance: float) -> None:
        """ValueError if image and buffers do not belong together, or are no input of this network."""
        stride, patch = self.vae.config.spatial_compression_ratio, self.transformer.config.patch_size[-1]
        height, width = image.shape[-2:]
        if height % (stride * patch) or width % (stride * patch):
            raise ValueError(
                f"height and width must be multiples of {stride * patch}, found {height}x{width}: resize the "
                "image or crop it"
            )
        cells = (height // stride, width // stride)
        expected = (len(image), self.num_buffers * BUFFER_CHANNELS, buffers.shape[2], *cells)
        if tuple(buffers.shape) != expected:
            raise ValueError(
                f"the buffers of {len(image)} image(s) of {height}x{width} must have the shape {expected}, "
                f"found {tuple(buffers.shape)}: take those that encode_buffers gives for the same images"
            )
        largest = list(self.transformer.config.max_size)
        if any(size > limit for size, limit in zip(expected[2:], largest, strict=True)):
            raise ValueError(
                f"the network knows positions of up to {largest} latent frames, rows and columns, found "
                f"{list(expected[2:])}: make a shorter or smaller video"
            )
        if num_steps < 1 or not 0 <= guidance < float("inf"):
            raise ValueError(
                f"expected at least 1 step and a finite guidance from 0 on, found {num_steps} and {guidance}"
            )


def _statistics(config: Any) -> LatentStatistics:
    """The tokenizer's statistics [C, S] from its configuration, where conversion put the official ones."""
    mean, std = (
        torch.tensor(values, dtype=torch.float32).view(config.latent_channels, -1)
        for values in (config.latents_mean, config.latents_std)
    )
    return LatentStatistics(mean, std, repeat_last=mean.shape[1] == 1)
