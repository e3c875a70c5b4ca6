"""What the decoder knows beside the video latents: rays of the cells, encoded Plücker maps and encoded times.

Moment and direction of the rays at full resolution pass through the video encoder as if they were two
colour videos, raw (lyra_decoder.md section 2); so do times in the dynamic model. Encoding is the costly part
and camera paths come back again and again, so its results are kept, found by the content of the cameras.

Shape letters: B scenes, V views (trajectories), L frames, H W image, h' w' grid of Gaussian cells, C latent
channels, T latent frames, h w latent cells.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from lyra_ns.cameras import CameraPath, RayGrid, plucker_map, ray_grid
from lyra_ns.codec.interface import VideoCodec

RayDtype = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class Conditioning:
    """Rays and encoded maps for B scenes of V views."""

    plucker: Float[Tensor, "B V C2 T h w"]
    """Latents of the moment video, then of the direction video, along the channels."""
    rays: RayGrid
    """One ray for each Gaussian cell of each frame, [B, V, L, h', w']."""
    time_source: Float[Tensor, "B C T h w"] | None = None
    """Latents of the frames' times; only for a target time."""
    time_target: Float[Tensor, "B C 1 h w"] | None = None
    """Latent of the one time that the Gaussians show."""

    @property
    def time(self) -> Float[Tensor, "B C T1 h w"] | None:
        """Source times and target time as the decoder takes them."""
        if self.time_source is None or self.time_target is None:
            return None
        return torch.cat([self.time_source, self.time_target], 2)

    def to(self, device: torch.device | str) -> Conditioning:
        """The same conditioning on `device`."""
        return Conditioning(
            self.plucker.to(device),
            self.rays.to(device),
            None if self.time_source is None else self.time_source.to(device),
            None if self.time_target is None else self.time_target.to(device),
        )


class LatentCache:
    """Encoded maps by content, the least recently used thrown out first."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._entries: OrderedDict[str, Tensor] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: str) -> Tensor | None:
        """The entry under `key`, None if it is not there."""
        if key in self._entries:
            self._entries.move_to_end(key)
        return self._entries.get(key)

    def put(self, key: str, latents: Tensor) -> None:
        """Keep `latents`, and let go of older entries until all fit."""
        if key in self._entries:
            self.num_bytes -= self._entries.pop(key).nbytes
        self._entries[key] = latents
        self.num_bytes += latents.nbytes
        while self.num_bytes > self.max_bytes:
            _, oldest = self._entries.popitem(last=False)
            self.num_bytes -= oldest.nbytes


class ConditioningBuilder:
    """Builds the conditioning of camera paths with one codec.

    Cameras and codec must be on the same device. Ray maps are encoded in groups of `views_at_once`: all
    views of a scene for a cheap codec, 1 for the full-size Cosmos encoder. `plucker_dtype` and `ray_dtype`
    say in which type rays are computed; bfloat16 is the official regime (lyra_decoder.md 1.10). The results
    are float32 either way. With `max_cache_bytes` 0 nothing is kept, and a GPU is never waited for: the keys
    of the cache are made from the cameras' content on the host.
    """

    def __init__(
        self,
        codec: VideoCodec,
        cell_size: int,
        views_at_once: int = 8,
        plucker_dtype: RayDtype = "float32",
        ray_dtype: RayDtype = "float32",
        max_cache_bytes: int = 2**30,
    ) -> None:
        if views_at_once < 1:
            raise ValueError(f"views_at_once must be at least 1, found {views_at_once}")
        self.codec = codec
        self.cell_size = cell_size
        self.views_at_once = views_at_once
        self.plucker_dtype = plucker_dtype
        self.ray_dtype = ray_dtype
        self.cache = LatentCache(max_cache_bytes)

    @torch.no_grad()
    def build(self, cameras: CameraPath, target_time: Float[Tensor, " B"] | None = None) -> Conditioning:
        """Conditioning of cameras [B, V, L], given in the frame of each scene's reference camera.

        With `target_time` (0 to 1, one per scene) also the times of the dynamic model; all views of a scene
        must then show the same times.
        """
        self._check(cameras)
        rays = self._rays(cameras)
        plucker = self._plucker(cameras)
        if target_time is None:
            return Conditioning(plucker, rays)
        source = self._encoded_times(cameras, _shared_times(cameras))
        target = self._encoded_times(cameras, target_time[:, None].to(cameras.times))
        return Conditioning(plucker, rays, source, target)

    def _check(self, cameras: CameraPath) -> None:
        if len(cameras.shape) != 3:
            raise ValueError(f"expected cameras [B, V, L] (scene, view, frame), found {list(cameras.shape)}")
        self.codec.spec.latent_shape(cameras.shape[2], cameras.height, cameras.width)
        if cameras.height % self.cell_size or cameras.width % self.cell_size:
            raise ValueError(
                f"images must be multiples of the cell size {self.cell_size}, found "
                f"{cameras.height}x{cameras.width}: crop or resize them"
            )

    def _rays(self, cameras: CameraPath) -> RayGrid:
        cameras = _in_dtype(cameras, self.ray_dtype)
        grid = ray_grid(cameras, cameras.height // self.cell_size, cameras.width // self.cell_size)
        return grid.to(torch.float32)

    def _plucker(self, cameras: CameraPath) -> Float[Tensor, "B V C2 T h w"]:
        num_scenes, num_views, num_frames = cameras.shape
        views = cameras.reshape(num_scenes * num_views, num_frames)
        poses_and_intrinsics = torch.cat([views.camera_to_world.flatten(2), views.intrinsics], -1)
        latents = self._cached(
            "plucker", cameras, poses_and_intrinsics, lambda rows: self._encode_rays(views[rows])
        )
        return latents.unflatten(0, (num_scenes, num_views))

    def _encode_rays(self, views: CameraPath) -> Float[Tensor, "N C2 T h w"]:
        cameras = _in_dtype(views, self.plucker_dtype)
        maps = plucker_map(ray_grid(cameras, cameras.height, cameras.width)).float()
        videos = maps.movedim(-1, 1)  # [N, 6, L, H, W]
        return torch.cat([self.codec.encode(videos[:, :3]), self.codec.encode(videos[:, 3:])], 1)

    def _encoded_times(self, cameras: CameraPath, times: Float[Tensor, "B L"]) -> Float[Tensor, "B C T h w"]:
        return self._cached(
            "time",
            cameras,
            times,
            lambda rows: self.codec.encode(time_video(times[rows], cameras.height, cameras.width)),
        )

    def _cached(
        self,
        kind: str,
        cameras: CameraPath,
        content: Float[Tensor, "N *any"],
        encode: Callable[[slice | list[int]], Tensor],
    ) -> Tensor:
        """Latents of the rows of `content`; what is not kept comes from `encode(rows)`, equal ones once."""
        if not self.cache.max_bytes:
            size = self.views_at_once
            groups = [encode(slice(row, row + size)).float() for row in range(0, len(content), size)]
            return torch.cat(groups)
        keys = self._keys(kind, cameras, content)
        found = {key: latents for key in keys if (latents := self.cache.get(key)) is not None}
        missing = {key: row for row, key in enumerate(keys) if key not in found}
        rows, size = list(missing.values()), self.views_at_once
        for start in range(0, len(rows), size):
            group = rows[start : start + size]
            for row, latents in zip(group, encode(group).float(), strict=True):
                found[keys[row]] = latents.clone()  # a view would keep the whole group alive
                self.cache.put(keys[row], found[keys[row]])
        return torch.stack([found[key] for key in keys])

    def _keys(self, kind: str, cameras: CameraPath, content: Float[Tensor, "N *any"]) -> list[str]:
        """For each row of `content` a digest of everything that its encoded map depends on."""
        size = (cameras.height, cameras.width, content.shape[1:])
        settings = repr((kind, size, self.codec.spec, self.plucker_dtype, str(content.device))).encode()
        rows = content.detach().cpu().contiguous().numpy()
        return [hashlib.sha256(settings + row.tobytes()).hexdigest() for row in rows]


def time_video(times: Float[Tensor, "B L"], height: int, width: int) -> Float[Tensor, "B 3 L H W"]:
    """Times from 0 to 1 as videos of one colour a frame: 2 [t, cos t, sin t] - 1 (spec 2)."""
    colours = torch.stack([times, torch.cos(times), torch.sin(times)], 1) * 2 - 1
    return colours[..., None, None].expand(*colours.shape, height, width)


def _in_dtype(cameras: CameraPath, dtype: RayDtype) -> CameraPath:
    kind = torch.float32 if dtype == "float32" else torch.bfloat16
    return replace(
        cameras, camera_to_world=cameras.camera_to_world.to(kind), intrinsics=cameras.intrinsics.to(kind)
    )


def _shared_times(cameras: CameraPath) -> Float[Tensor, "B L"]:
    """The times of the first view, ValueError if another view shows others."""
    first = cameras.times[:, :1]
    if not torch.allclose(cameras.times, first.expand_as(cameras.times), atol=1e-6):
        raise ValueError(
            "all views of a dynamic scene must show the same times: resample them to one time line"
        )
    return first[:, 0]
