"""Wan VACE as a teacher: what the 3D cache shows is the control video, its holes are what is to be made.

A camera needs no input of its own: the warped frames show where it is (docs/reference/gen3c.md, "Other
teachers"). The path is rendered at the size of the request, so that the cache leaves no gaps, and stretched
to a size that the model takes. Diffusers is imported when weights are loaded.

**Not tried on the released weights**, which could not be had: arguments, shapes and masks are proven on
random weights of the real classes.

Shape letters: L frames, K frames as made, S tokens, E text channels, H W image, h w image as made.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor
from torch.nn import functional

from lyra_ns.codec.base import VideoCodec
from lyra_ns.device import MemoryName
from lyra_ns.gen3c.inputs import encode_texts
from lyra_ns.pretrained import default_dtype, diffusers_class, load_pipeline, place
from lyra_ns.teachers.base import (
    OnStep,
    TeacherClip,
    TeacherRequest,
    cache_on,
    check_requests,
    eight_bits,
    naming,
)
from lyra_ns.teachers.reencoding import (
    Notes,
    check_stretch,
    frames_to_make,
    held,
    reencoded,
    size_to_make,
    step_counter,
    stretched,
)
from lyra_ns.teachers.warp import warped_frames

NAME = "wan-vace"
UNKNOWN_COLOUR = 0.5
"""Colour of the control video in holes: 0 in the range -1 to 1, as in VACE's own preparation."""
NEGATIVE_PROMPT = (
    "overexposed, washed out colours, blurred details, low quality, compression artefacts, subtitles, "
    "watermark, deformed shapes, flicker, cuts"
)
"""What a clip should not show if the request says nothing."""


@dataclass(frozen=True)
class WanVaceSettings:
    """How clips are made."""

    steps: int = 50
    """Steps of the sampler."""
    guidance: float = 5.0
    """Weight of the prompt against the negative one; 1 switches it off and halves the work."""
    control: float = 1.0
    """Weight of the control video."""
    smallest_area: int = 480 * 832
    """Pixels; smaller requests are made about this large, as the model has learnt, and shrunk."""
    shows_reference: bool = False
    """Gives the first frame as a reference picture, too, besides being the first frame."""


@dataclass(frozen=True)
class WanVaceTeacher:
    """Clips by Wan VACE: the first frame and what the cache shows are given, the rest is made."""

    pipeline: Any
    """A WanVACEPipeline of diffusers, placed on `device`."""
    codec: VideoCodec
    """Encodes the clips; on `device`."""
    device: torch.device | str = "cpu"
    """Where caches are rendered and clips encoded."""
    settings: WanVaceSettings = WanVaceSettings()
    """How clips are made."""
    weights: str = "unnamed"
    """Hub name or folder of the weights, for the notes of clips."""

    @property
    def name(self) -> str:
        """`wan-vace`."""
        return NAME

    @property
    def needs_cache(self) -> bool:
        """Always: the camera is told by what the cache shows."""
        return True

    @torch.no_grad()
    def generate(
        self, requests: Sequence[TeacherRequest], on_step: OnStep | None = None
    ) -> list[TeacherClip]:
        """One clip per request, in their order; depth None. ValueError before anything is made."""
        check_requests(requests, self.codec.spec, needs_cache=True)
        for request in requests:
            self._check_size(request)
        texts = self._embeddings(requests)
        clips = []
        for number, request in enumerate(requests):
            count = step_counter(on_step, number, len(requests), self.settings.steps)
            clips.append(self._clip(request, texts, count))
        return clips

    def control(self, request: TeacherRequest) -> tuple[Float[Tensor, "K 3 h w"], Bool[Tensor, "K 1 h w"]]:
        """The control video, colours 0 to 1, and where it is to be made anew; on `device`.

        The first frame is the image, all of it known.
        """
        assert request.cache is not None
        cache = cache_on(request.cache, self.device)
        warped = warped_frames(cache, request.cameras, request.start, request.image)
        size, num_frames = self._size(request), self._num_frames(request)
        colours, known = warped.video.to(self.device).float() / 255, warped.mask.to(self.device)
        # Stretched with holes filled: their grey would seep into what is known around them.
        colours = stretched(colours, *size)
        known = functional.interpolate(known.float(), size, mode="nearest-exact") > 0.5
        colours = torch.where(known, colours, UNKNOWN_COLOUR)
        return held(colours, num_frames), held(~known, num_frames)

    def _clip(self, request: TeacherRequest, texts: dict[str, Tensor], count: Any) -> TeacherClip:
        video, unknown = self.control(request)
        height, width = video.shape[-2:]
        settings = self.settings
        made = self.pipeline(
            video=[video],
            mask=[unknown.float()],
            reference_images=[_picture(request.image)] if settings.shows_reference else None,
            prompt_embeds=texts[_prompt(request)],
            negative_prompt_embeds=texts[_negative_prompt(request)],
            height=height,
            width=width,
            num_frames=len(video),
            num_inference_steps=settings.steps,
            guidance_scale=settings.guidance,
            conditioning_scale=settings.control,
            generator=torch.Generator().manual_seed(request.seed),
            output_type="pt",
            callback_on_step_end=count,
        ).frames[0]
        notes: Notes = {
            "teacher": NAME,
            "weights": self.weights,
            "steps": settings.steps,
            "guidance": settings.guidance,
            "share_seen": 1 - unknown.float().mean().item(),
        }
        return reencoded(made, request, self.codec, self.device, notes)

    def _embeddings(self, requests: Sequence[TeacherRequest]) -> dict[str, Float[Tensor, "1 S E"]]:
        """Embeddings of all texts of the requests, each computed once.

        Not by the pipeline, which would do it for each clip again and needs the package ftfy for it.
        """
        texts = dict.fromkeys(text for each in requests for text in (_prompt(each), _negative_prompt(each)))
        pipeline, device = self.pipeline, self.pipeline._execution_device
        embeddings = {
            text: encode_texts([_cleaned(text)], pipeline.tokenizer, pipeline.text_encoder, device)
            for text in texts
        }
        pipeline.maybe_free_model_hooks()
        return embeddings

    def _check_size(self, request: TeacherRequest) -> None:
        cameras = request.cameras
        with naming(request):
            check_stretch(cameras.height, cameras.width, *self._size(request))

    def _size(self, request: TeacherRequest) -> tuple[int, int]:
        """(height, width) at which the clip is made."""
        network = self.pipeline.transformer or self.pipeline.transformer_2
        multiple = self.pipeline.vae_scale_factor_spatial * network.config.patch_size[1]
        cameras = request.cameras
        return size_to_make(cameras.height, cameras.width, multiple, self.settings.smallest_area)

    def _num_frames(self, request: TeacherRequest) -> int:
        return frames_to_make(request.cameras.shape[0], self.pipeline.vae_scale_factor_temporal)


def load_wan_vace(
    weights: str,
    codec: VideoCodec,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    memory: MemoryName = "balanced",
    settings: WanVaceSettings | None = None,
    flow_shift: float | None = None,
) -> WanVaceTeacher:
    """The teacher with the weights of a folder or hub id, such as Wan-AI/Wan2.1-VACE-1.3B-diffusers.

    `codec` must be on `device`. `dtype` defaults to bfloat16 on a GPU and float32 on a CPU; the autoencoder
    stays in float32. `flow_shift` replaces the sampler's: Wan advises 3 for 480 rows and 5 for 720.
    FileNotFoundError, ModuleNotFoundError or ValueError, in one sentence, if that cannot be had.
    """
    precisions = {"default": default_dtype(device, dtype), "vae": torch.float32}
    pipeline = load_pipeline("WanVACEPipeline", weights, precisions, "teacher wan-vace")
    if flow_shift is not None:
        sampler = diffusers_class("UniPCMultistepScheduler", "teacher wan-vace")
        pipeline.scheduler = sampler.from_config(pipeline.scheduler.config, flow_shift=flow_shift)
    pipeline.set_progress_bar_config(disable=True)  # on_step tells how far it is.
    place(pipeline, device, memory)
    return WanVaceTeacher(pipeline, codec, device, settings or WanVaceSettings(), weights)


def _prompt(request: TeacherRequest) -> str:
    return request.prompt or ""


def _negative_prompt(request: TeacherRequest) -> str:
    return NEGATIVE_PROMPT if request.negative_prompt is None else request.negative_prompt


def _cleaned(text: str) -> str:
    """The text as the pipeline would clean it, but for broken encodings."""
    return " ".join(html.unescape(html.unescape(text)).split())


def _picture(image: Float[Tensor, "3 H W"]) -> Image.Image:
    return Image.fromarray(eight_bits(image).permute(1, 2, 0).cpu().numpy())
