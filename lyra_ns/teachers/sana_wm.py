"""SANA-WM as a teacher: a picture, a text and explicit cameras in, no 3D cache needed.

Its first stage, at 704 x 1280 (docs/reference/gen3c.md, "Other teachers"); the refiner of its second stage,
which changes the number of frames, is left out. Cameras are told relative to the first, in the units of the
request times `pose_scale`. Diffusers is imported when weights are loaded.

**Not tried on the released weights**, which could not be had, and whose licence is to be read before use:
arguments, shapes and cameras are proven on random weights of the real classes.

Shape letters: K frames as made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from lyra_ns.cameras import relative_to
from lyra_ns.codec.base import VideoCodec
from lyra_ns.device import MemoryName
from lyra_ns.pretrained import default_dtype, load_pipeline, place
from lyra_ns.teachers.base import OnStep, TeacherClip, TeacherRequest, check_requests, eight_bits, naming
from lyra_ns.teachers.reencoding import (
    Notes,
    check_stretch,
    frames_to_make,
    held,
    reencoded,
    step_counter,
    stretched,
)

NAME = "sana-wm"


@dataclass(frozen=True)
class SanaWmSettings:
    """How clips are made."""

    steps: int = 60
    """Steps of the sampler."""
    guidance: float = 5.0
    """Weight of the prompt against the negative one; 1 switches it off and halves the work."""
    height: int = 704
    """Rows of the frames as made; the released weights know no other size."""
    width: int = 1280
    """Columns of the frames as made."""
    pose_scale: float = 1.0
    """Units of the model per unit of the request's cameras."""


@dataclass(frozen=True)
class SanaWmTeacher:
    """Clips by SANA-WM along the cameras of the request."""

    pipeline: Any
    """A SanaWMPipeline of diffusers, placed on `device`."""
    codec: VideoCodec
    """Encodes the clips; on `device`."""
    device: torch.device | str = "cpu"
    """Where clips are encoded."""
    settings: SanaWmSettings = SanaWmSettings()
    """How clips are made."""
    weights: str = "unnamed"
    """Hub name or folder of the weights, for the notes of clips."""

    @property
    def name(self) -> str:
        """`sana-wm`."""
        return NAME

    @property
    def needs_cache(self) -> bool:
        """Never: cameras are told as they are."""
        return False

    @torch.no_grad()
    def generate(
        self, requests: Sequence[TeacherRequest], on_step: OnStep | None = None
    ) -> list[TeacherClip]:
        """One clip per request, in their order; depth None. ValueError before anything is made.

        Among others for sizes whose aspect is far from the model's: their frames would be distorted.
        """
        check_requests(requests, self.codec.spec, needs_cache=False)
        for request in requests:
            self._check_size(request)
        clips = []
        for number, request in enumerate(requests):
            count = step_counter(on_step, number, len(requests), self.settings.steps)
            clips.append(self._clip(request, count))
        return clips

    def cameras(self, request: TeacherRequest) -> tuple[np.ndarray, np.ndarray]:
        """Poses [K, 4, 4] and intrinsics [K, 4] as the pipeline reads them, for frames as made.

        Camera to world relative to the first frame, axes of OpenCV; the last camera is held where the model
        makes more frames than asked for.
        """
        path = relative_to(request.cameras, request.cameras.camera_to_world[0])
        path = path.resized(self.settings.height, self.settings.width)
        poses = path.camera_to_world.clone()
        poses[:, :3, 3] *= self.settings.pose_scale
        num_frames = frames_to_make(len(poses), self.pipeline.vae_temporal_compression_ratio)
        poses, intrinsics = held(poses, num_frames), held(path.intrinsics, num_frames)
        return poses.float().cpu().numpy(), intrinsics.float().cpu().numpy()

    def _clip(self, request: TeacherRequest, count: Any) -> TeacherClip:
        settings = self.settings
        poses, intrinsics = self.cameras(request)
        made = self.pipeline(
            image=_picture(request.image, settings.height, settings.width),
            prompt=request.prompt or "",
            negative_prompt=request.negative_prompt or "",
            c2w=poses,
            intrinsics=intrinsics,
            height=settings.height,
            width=settings.width,
            num_frames=len(poses),
            num_inference_steps=settings.steps,
            guidance_scale=settings.guidance,
            generator=torch.Generator().manual_seed(request.seed),
            output_type="pt",
            callback_on_step_end=count,
        ).frames
        notes: Notes = {
            "teacher": NAME,
            "weights": self.weights,
            "steps": settings.steps,
            "guidance": settings.guidance,
            "pose_scale": settings.pose_scale,
        }
        return reencoded(made, request, self.codec, self.device, notes)

    def _check_size(self, request: TeacherRequest) -> None:
        cameras, settings = request.cameras, self.settings
        with naming(request):
            check_stretch(cameras.height, cameras.width, settings.height, settings.width)


def load_sana_wm(
    weights: str,
    codec: VideoCodec,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    memory: MemoryName = "balanced",
    settings: SanaWmSettings | None = None,
) -> SanaWmTeacher:
    """The teacher with the weights of a folder or hub id.

    Efficient-Large-Model/SANA-WM_bidirectional-diffusers are the released ones. `codec` must be on `device`.
    `dtype` defaults to bfloat16 on a GPU and float32 on a CPU. ValueError for a size that the autoencoder
    cannot take; FileNotFoundError, ModuleNotFoundError or ValueError, in one sentence, if the weights cannot
    be had.
    """
    pipeline = load_pipeline("SanaWMPipeline", weights, default_dtype(device, dtype), "teacher sana-wm")
    settings = settings or SanaWmSettings()
    multiple = pipeline.vae_spatial_compression_ratio
    if settings.height % multiple or settings.width % multiple:
        raise ValueError(
            f"teacher sana-wm makes heights and widths in multiples of {multiple}, found "
            f"{settings.height}x{settings.width}: choose others"
        )
    pipeline.set_progress_bar_config(disable=True)  # on_step tells how far it is.
    return SanaWmTeacher(place(pipeline, device, memory), codec, device, settings, weights)


def _picture(image: Float[Tensor, "3 H W"], height: int, width: int) -> Image.Image:
    """The first frame at the size of the frames as made, which the pipeline leaves as it is."""
    frame = eight_bits(stretched(image[None].float(), height, width)[0])
    return Image.fromarray(frame.permute(1, 2, 0).cpu().numpy())
