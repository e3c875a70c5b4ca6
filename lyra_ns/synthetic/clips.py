"""The clips of a scene: its camera paths, rendered and encoded."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from lyra_ns.cameras import CameraPath
from lyra_ns.codec.interface import VideoCodec
from lyra_ns.synthetic.draws import generator_for
from lyra_ns.synthetic.raycast import SceneRenderer
from lyra_ns.synthetic.scenes import ProceduralScene
from lyra_ns.trajectories import (
    NUM_NOVEL_PATHS,
    TRAJECTORIES,
    draw_distance,
    novel_path,
    trajectory_path,
)

USUAL_FOCAL_LENGTHS = (0.9, 0.9)
"""Shortest and longest focal length of a scene, in image widths."""


@dataclass(frozen=True)
class ClipSize:
    """Size of every clip of a data set."""

    num_frames: int = 17
    """Frames of a clip, 8k + 1."""
    height: int = 160
    """Image height in pixels."""
    width: int = 256
    """Image width in pixels."""
    focal_lengths: tuple[float, float] = USUAL_FOCAL_LENGTHS
    """Shortest and longest focal length, in image widths; each scene has one of its own in between."""

    def __post_init__(self) -> None:
        """ValueError for focal lengths that no camera has."""
        shortest, longest = self.focal_lengths
        if not 0 < shortest <= longest < math.inf:
            raise ValueError(
                f"expected a shortest and a longest focal length above 0, in image widths, found {shortest} "
                f"and {longest}: 0.9 0.9 is usual"
            )

    def intrinsics(self, seed: int, name: str) -> Float[Tensor, " 4"]:
        """fx, fy, cx, cy in pixels of the scene called `name`; ratios of focal lengths are drawn evenly."""
        shortest, longest = self.focal_lengths
        share = torch.rand((), generator=generator_for("focal length", seed, name), dtype=torch.float64)
        focal = shortest * (longest / shortest) ** float(share) * self.width
        return torch.tensor([focal, focal, self.width / 2, self.height / 2])


@dataclass(frozen=True)
class RenderedClip:
    """One clip, ready to be written; on the CPU."""

    folder: str
    """Family of the clip on disk: static, dynamic or novel."""
    trajectory: int
    """Numeric id of the path within the family."""
    cameras: CameraPath
    """The path [L]."""
    rgb: UInt8[Tensor, "L 3 H W"]
    """True frames."""
    depth: Float[Tensor, "L H W"]
    """Exact z-depth."""
    latents: Float[Tensor, "C T h w"] | None
    """Latents of the frames in diffusion space; None for held-out paths."""


def scene_cameras(
    seed: int, name: str, centre_depth: float, size: ClipSize, dynamic: bool = False
) -> dict[tuple[str, int], CameraPath]:
    """The paths of a scene by (family, id): the six of GEN3C, and the held-out ones.

    A dynamic scene has six more (6..11), which a video model makes on the reversed video: in forward time,
    as written here, their cameras come home to the start pose instead of leaving it.
    """
    family = "dynamic" if dynamic else "static"
    paths: dict[tuple[str, int], CameraPath] = {}
    intrinsics = size.intrinsics(seed, name)
    for number in range(len(TRAJECTORIES) * (2 if dynamic else 1)):
        kind = number % len(TRAJECTORIES)
        distance = draw_distance(kind, generator_for("path", seed, name, number))
        path = trajectory_path(
            kind, distance, centre_depth=centre_depth, num_frames=size.num_frames,
            intrinsics=intrinsics, height=size.height, width=size.width,
        )  # fmt: skip
        if number != kind:
            path = replace(path, camera_to_world=path.camera_to_world.flip(0))
        paths[family, number] = path
    for number in range(NUM_NOVEL_PATHS):
        generator = generator_for("novel path", seed, name, number)
        paths["novel", number] = novel_path(
            number, generator, centre_depth=centre_depth, num_frames=size.num_frames,
            intrinsics=intrinsics, height=size.height, width=size.width,
        )  # fmt: skip
    return paths


def render_clips(
    scene: ProceduralScene, seed: int, size: ClipSize, codec: VideoCodec, device: torch.device | str
) -> list[RenderedClip]:
    """All clips of a scene, rendered and encoded on `device` (where `codec` must be)."""
    paths = scene_cameras(seed, scene.name, scene.centre_depth, size, scene.is_dynamic)
    cameras = list(paths.values())
    joined = replace(
        cameras[0],
        camera_to_world=torch.cat([path.camera_to_world for path in cameras]),
        intrinsics=torch.cat([path.intrinsics for path in cameras]),
        times=torch.cat([path.times for path in cameras]),
    )
    frames = SceneRenderer(scene, device).render(joined)
    videos = frames.rgb.split(size.num_frames)
    encoded = torch.stack([video for key, video in zip(paths, videos, strict=True) if key[0] != "novel"])
    latents = encode_videos(encoded, codec).cpu()
    rgb, depth = frames.rgb.cpu().split(size.num_frames), frames.depth.cpu().split(size.num_frames)
    return [
        RenderedClip(family, number, path, rgb[k], depth[k], latents[k] if k < len(latents) else None)
        for k, ((family, number), path) in enumerate(paths.items())
    ]


@torch.inference_mode()
def encode_videos(rgb: UInt8[Tensor, "N L 3 H W"], codec: VideoCodec) -> Float[Tensor, "N C T h w"]:
    """Latents in diffusion space of true frames."""
    video = rgb.transpose(1, 2).float() / 127.5 - 1
    return codec.to_diffusion(codec.encode(video))
