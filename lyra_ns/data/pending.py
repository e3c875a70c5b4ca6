"""A batch that waits for the codec: its frames are gathered, its latents not decoded or encoded yet.

Worker processes gather; the process with the accelerator decodes and encodes.

Shape letters: B scenes, V trajectories, L frames, M targets per scene, N clips to decode, F frames from
files, C T h w latent, H W image.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from lyra_ns.cameras import CameraPath
from lyra_ns.codec.interface import FrameDecoder, VideoCodec
from lyra_ns.data.plans import SamplingConfig
from lyra_ns.data.types import SceneBatch

DECODED_NUMBERS_AT_ONCE = 2**28
"""Numbers of decoded video held at once (1 GiB): one 121 x 704 x 1280 clip, or a hundred small ones."""


@dataclass(frozen=True)
class FrameSources:
    """Where the target frames, and the input frames of a warm start, come from."""

    teacher_latents: Float[Tensor, "N C T h w"] | None
    """Latents of the clips to decode; with a warm start from latents the B V inputs come first."""
    decoded_slots: list[tuple[int, int, int]]
    """Clip row, frame, and place among the B M targets, of each target that is decoded."""
    file_frames: UInt8[Tensor, "F 3 H W"] | None
    """Target frames read from files."""
    file_slots: list[int]
    """Place among the B M targets of each of them."""
    input_frames: UInt8[Tensor, "inputs L 3 H W"] | None
    """Frames of the B V inputs, to be encoded or for a warm start from files."""

    @property
    def num_clips(self) -> int:
        """Clips to decode."""
        return 0 if self.teacher_latents is None else len(self.teacher_latents)

    def to(self, device: torch.device | str) -> FrameSources:
        """The same on `device`."""
        return replace(self, **moved(vars(self), device))


@dataclass(frozen=True)
class PendingBatch:
    """A batch whose target frames are not decoded yet."""

    ready: dict[str, Any]
    """The fields of the SceneBatch that are complete."""
    sources: FrameSources
    """Where the missing fields come from."""
    config: SamplingConfig
    """How the batch was drawn."""

    def to(self, device: torch.device | str) -> PendingBatch:
        """The same on `device`."""
        ready = self.ready | moved(self.ready, device)
        return replace(self, ready=ready, sources=self.sources.to(device))

    @torch.no_grad()
    def complete(self, codec: VideoCodec) -> SceneBatch:
        """The batch with its target frames and latents; the codec must be on the batch's device."""
        num_scenes, num_inputs = self.ready["cameras"].shape[:2]
        targets = dict(self._file_targets())
        cells = self._file_cells()
        num_clips = self.sources.num_clips
        if isinstance(codec, FrameDecoder):
            targets |= self._single_frames(codec)
            num_clips = num_scenes * num_inputs if self._inputs_are_decoded else 0
        for first_row, videos in self._decoded(codec, num_clips):
            if not isinstance(codec, FrameDecoder):
                targets |= self._picked(first_row, videos)
            if self._inputs_are_decoded:
                inputs = videos[: max(num_scenes * num_inputs - first_row, 0)]
                cells += [self._cell_means(video.transpose(0, 1)) for video in inputs]
        target_rgb = torch.stack([targets[slot] for slot in sorted(targets)])
        ready = self.ready
        if self.config.inputs == "encoded":
            ready = {**ready, "latents": self._encoded(codec).unflatten(0, (num_scenes, num_inputs))}
        return SceneBatch(
            **ready,
            target_rgb=target_rgb.unflatten(0, (num_scenes, -1)),
            input_rgb=torch.stack(cells).unflatten(0, (num_scenes, num_inputs)) if cells else None,
        )

    def _encoded(self, codec: VideoCodec) -> Float[Tensor, "inputs C T h w"]:
        """Latents of the input frames, in diffusion space as stored ones are; a bounded number at a time."""
        clips = self.sources.input_frames
        assert clips is not None, "gather reads the frames that are to be encoded"
        at_once = max(1, DECODED_NUMBERS_AT_ONCE // clips[0].numel())
        groups = (group.transpose(1, 2).float() / 127.5 - 1 for group in clips.split(at_once))
        return torch.cat([codec.to_diffusion(codec.encode(group)) for group in groups])

    @property
    def _inputs_are_decoded(self) -> bool:
        return self.config.warm_start and self.config.target_frames == "latents"

    def _file_targets(self) -> Iterator[tuple[int, Tensor]]:
        if self.sources.file_frames is not None:
            images = (self.sources.file_frames.float() / 255).permute(0, 2, 3, 1)
            yield from zip(self.sources.file_slots, images, strict=True)

    def _file_cells(self) -> list[Tensor]:
        clips = self.sources.input_frames if self.config.warm_start else None
        return [] if clips is None else [self._cell_means(clip.float() / 255) for clip in clips]

    def _single_frames(self, codec: Any) -> dict[int, Tensor]:
        """The decoded target frames by place, each by itself. `codec` is a VideoCodec and a FrameDecoder."""
        if self.sources.teacher_latents is None or not self.sources.decoded_slots:
            return {}
        raw = codec.from_diffusion(self.sources.teacher_latents.float())
        rows, frames, slots = zip(*self.sources.decoded_slots, strict=True)
        images = _to_unit_range(codec.decode_frames([raw[row] for row in rows], frames))
        return dict(zip(slots, images.permute(0, 2, 3, 1), strict=True))

    def _decoded(self, codec: VideoCodec, num_clips: int) -> Iterator[tuple[int, Tensor]]:
        """First row and videos [n, 3, L, H, W] from 0 to 1 of the first clips, a bounded number at a time."""
        cameras: CameraPath = self.ready["cameras"]
        numbers_per_clip = 3 * cameras.shape[-1] * cameras.height * cameras.width
        at_once = max(1, DECODED_NUMBERS_AT_ONCE // numbers_per_clip)
        latents = self.sources.teacher_latents
        if latents is None:
            return
        for row in range(0, num_clips, at_once):
            z = latents[row : min(row + at_once, num_clips)]
            yield row, _to_unit_range(codec.decode(codec.from_diffusion(z.float())))

    def _picked(self, first_row: int, videos: Tensor) -> dict[int, Tensor]:
        """The target frames among these clips, by place. Stacking copies them, so the clips can be freed."""
        here = [
            (row - first_row, frame, slot)
            for row, frame, slot in self.sources.decoded_slots
            if first_row <= row < first_row + len(videos)
        ]
        if not here:
            return {}
        images = torch.stack([videos[row, :, frame].permute(1, 2, 0) for row, frame, _ in here])
        return dict(zip((slot for _, _, slot in here), images, strict=True))

    def _cell_means(self, frames: Float[Tensor, "L 3 H W"]) -> Float[Tensor, "L rows columns 3"]:
        return functional.avg_pool2d(frames, self.config.cell_size).permute(0, 2, 3, 1)


def _to_unit_range(colours: Tensor) -> Tensor:
    return colours.add(1).mul_(0.5).clamp_(0, 1)


def moved(values: dict[str, Any], device: torch.device | str) -> dict[str, Any]:
    """The tensors and cameras among `values`, on `device`."""
    return {
        name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value.to(device)
        for name, value in values.items()
        if isinstance(value, Tensor | CameraPath)
    }
