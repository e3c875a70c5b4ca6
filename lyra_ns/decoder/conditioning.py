"""What the decoder knows beside the video latents: rays of the cells, encoded Plücker maps and encoded times.

Moment and direction of the rays at full resolution pass through the video encoder as if they were two colour
videos, raw (docs/reference/decoder.md, "Rays"); so do times in the dynamic model ("Time embedding" there).
Encoding is the costly part and camera paths come back again and again, so its results are kept: in memory
while a process runs, and in a folder from one run to the next. Keys are digests of everything that an entry
depends on, so an entry can be missing but never be out of date.

Shape letters: B scenes, V views (trajectories), L frames, H W image, h' w' grid of Gaussian cells, C latent
channels, T latent frames, h w latent cells.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from lyra_ns.cameras import CameraPath, RayGrid, plucker_map, ray_grid
from lyra_ns.codec.base import MapEncoder, VideoCodec
from lyra_ns.data.atomic import write_whole

logger = logging.getLogger(__name__)

FOLDER_BYTES = 16 * 2**30
"""Size of the default folder; one trajectory of 121 x 704 x 1280 takes 29 MB."""
SUFFIX = ".safetensors"
ABANDONED_AFTER = 24 * 3600.0
"""Seconds after which a file that was never renamed counts as left behind by a process that died."""


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


class LatentFolder:
    """The same in files of a folder, which any number of processes may share.

    A file appears whole or not at all, carries its own checksum and is deleted with a warning when that does
    not match; the least recently read files go when the folder grows beyond `max_bytes`. A folder that cannot
    be written is said once and left alone: a cache must not stop the work.
    """

    def __init__(self, folder: Path, max_bytes: int = FOLDER_BYTES) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        self._is_refused = False

    def get(self, key: str) -> Tensor | None:
        """The entry under `key` on the CPU, None if it is not there or was damaged."""
        path = self._path(key)
        try:
            content = path.read_bytes()
            os.utime(path)  # its turn to be thrown out counts from now
        except FileNotFoundError:
            return None
        except OSError as error:
            self._refuse(error)
            return None
        latents = _latents_of(content)
        if latents is None:
            logger.warning("%s is damaged: deleted, and its maps are encoded again", path)
            path.unlink(missing_ok=True)
        return latents

    def put(self, key: str, latents: Tensor) -> None:
        """Write an entry, and delete older ones until all fit."""
        if self._is_refused:
            return
        latents = latents.detach().cpu().contiguous()
        content = save({"latents": latents, "sha256": _checksum(latents)})
        try:
            write_whole(self._path(key), content)
            self._make_room()
        except OSError as error:
            self._refuse(error)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}{SUFFIX}"

    def _make_room(self) -> None:
        entries = sorted(self._files(), key=lambda entry: entry[1].st_mtime_ns)
        num_bytes = sum(status.st_size for _, status in entries)
        for path, status in entries:
            is_abandoned = path.suffix != SUFFIX and time.time() - status.st_mtime > ABANDONED_AFTER
            if is_abandoned or (num_bytes > self.max_bytes and path.suffix == SUFFIX):
                path.unlink(missing_ok=True)
                num_bytes -= status.st_size

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        """Our files, finished or not, that no other process deletes meanwhile."""
        for path in self.folder.iterdir():
            if path.suffix not in (SUFFIX, ".partial"):
                continue
            try:
                yield path, path.stat()
            except FileNotFoundError:
                continue

    def _refuse(self, error: OSError) -> None:
        if not self._is_refused:
            logger.warning(
                "encoded maps cannot be kept in %s (%s): each run encodes anew", self.folder, error
            )
        self._is_refused = True


def default_cache_folder() -> Path:
    """Where encoded maps are kept unless a folder is named: below XDG_CACHE_HOME, or ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "lyra_ns" / "ray_maps"


def _latents_of(content: bytes) -> Tensor | None:
    """The latents of a file, None if it is not one of ours or has changed."""
    try:
        tensors = load(content)
    except (SafetensorError, ValueError, RuntimeError):
        return None
    latents, checksum = tensors.get("latents"), tensors.get("sha256")
    if latents is None or checksum is None or not torch.equal(_checksum(latents), checksum):
        return None
    return latents


def _checksum(latents: Tensor) -> Tensor:
    """SHA-256 of type, shape and numbers, 32 bytes."""
    digest = sha256(f"{latents.dtype} {tuple(latents.shape)}".encode())
    digest.update(latents.view(torch.uint8).numpy().tobytes())
    return torch.frombuffer(bytearray(digest.digest()), dtype=torch.uint8)


RayDtype = Literal["float32", "bfloat16"]

CHEAP_VIEWS = 8
"""Views whose maps are encoded together by a codec that is no network."""
KEY_FORMAT = 1
"""Part of all keys; raised when maps of the same cameras come to be computed differently."""
RAYS_AT_ONCE = 2**23
"""Rays computed at one time: they are needed in float32, the maps only in the codec's type."""


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


@runtime_checkable
class NetworkCodec(Protocol):
    """A codec whose encoder is a network: worth a cache on disk, and too large for many views at once."""

    @property
    def encoding(self) -> str:
        """Who encodes, and in which type."""
        ...

    @property
    def video_dtype(self) -> torch.dtype:
        """Type in which videos go in."""
        ...

    def clips_at_once(self, num_frames: int, height: int, width: int) -> int:
        """Clips of this size that memory allows to encode together."""
        ...


class ConditioningBuilder:
    """Builds the conditioning of camera paths with one codec.

    Cameras and codec must be on the same device. Ray maps exist and are encoded in groups of `views_at_once`
    views; None lets a network say how many its memory allows. `plucker_dtype` and `ray_dtype` say in which
    type rays are computed; bfloat16 is the official regime (docs/reference/decoder.md, "Precision"). The
    results are float32 either way.

    What was encoded is kept in memory up to `max_cache_bytes`, and in `cache_folder` from one run to the
    next; `auto` is the user's cache folder for a network with a known digest and none for other codecs, None
    is no folder. Without either nothing is kept and a GPU is never waited for: keys are made on the host.
    """

    def __init__(
        self,
        codec: VideoCodec,
        cell_size: int,
        views_at_once: int | None = None,
        plucker_dtype: RayDtype = "float32",
        ray_dtype: RayDtype = "float32",
        max_cache_bytes: int = 2**30,
        cache_folder: Path | Literal["auto"] | None = "auto",
    ) -> None:
        if views_at_once is not None and views_at_once < 1:
            raise ValueError(f"views_at_once must be at least 1, found {views_at_once}")
        self.codec = codec
        self.cell_size = cell_size
        self.views_at_once = views_at_once
        self.plucker_dtype = plucker_dtype
        self.ray_dtype = ray_dtype
        self.cache = LatentCache(max_cache_bytes)
        self.folder = _latent_folder(codec, cache_folder)

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
        latents = self._encode_maps(self._ray_videos(views).flatten(0, 1))
        return torch.cat(latents.chunk(2), 1)

    def _ray_videos(self, views: CameraPath) -> Float[Tensor, "2 N 3 L H W"]:
        """Moment videos, then direction videos, in the codec's type; built a few frames at a time."""
        num_views, num_frames = views.shape
        height, width = views.height, views.width
        dtype = self.codec.video_dtype if isinstance(self.codec, NetworkCodec) else torch.float32
        videos = views.intrinsics.new_empty(2, num_views, 3, num_frames, height, width, dtype=dtype)
        step = max(RAYS_AT_ONCE // (num_views * height * width), 1)
        for start in range(0, num_frames, step):
            frames = slice(start, start + step)
            cameras = _in_dtype(views[:, frames], self.plucker_dtype)
            maps = plucker_map(ray_grid(cameras, height, width)).unflatten(-1, (2, 3))
            videos[:, :, :, frames] = maps.permute(4, 0, 5, 1, 2, 3)
        return videos

    def _encoded_times(self, cameras: CameraPath, times: Float[Tensor, "B L"]) -> Float[Tensor, "B C T h w"]:
        return self._cached(
            "time",
            cameras,
            times,
            lambda rows: self._encode_maps(time_video(times[rows], cameras.height, cameras.width)),
        )

    def _encode_maps(self, maps: Float[Tensor, "N 3 L H W"]) -> Float[Tensor, "N C T h w"]:
        codec = self.codec
        return codec.encode_maps(maps) if isinstance(codec, MapEncoder) else codec.encode(maps)

    def _cached(
        self,
        kind: str,
        cameras: CameraPath,
        content: Float[Tensor, "N *any"],
        encode: Callable[[slice | list[int]], Tensor],
    ) -> Tensor:
        """Latents of the rows of `content`; what is not kept comes from `encode(rows)`, equal ones once."""
        size = self._group_size(cameras)
        if not self.cache.max_bytes and self.folder is None:
            groups = [encode(slice(row, row + size)).float() for row in range(0, len(content), size)]
            return torch.cat(groups)
        keys = self._keys(kind, cameras, content)
        found = {key: latents for key in keys if (latents := self._kept(key, content.device)) is not None}
        missing = {key: row for row, key in enumerate(keys) if key not in found}
        rows = list(missing.values())
        for start in range(0, len(rows), size):
            group = rows[start : start + size]
            for row, latents in zip(group, encode(group).float(), strict=True):
                found[keys[row]] = latents.clone()  # a view would keep the whole group alive
                self._keep(keys[row], found[keys[row]])
        return torch.stack([found[key] for key in keys])

    def _group_size(self, cameras: CameraPath) -> int:
        """Views of one group; each has two maps."""
        if self.views_at_once is not None:
            return self.views_at_once
        if not isinstance(self.codec, NetworkCodec):
            return CHEAP_VIEWS
        return max(self.codec.clips_at_once(cameras.shape[2], cameras.height, cameras.width) // 2, 1)

    def _kept(self, key: str, device: torch.device) -> Tensor | None:
        latents = self.cache.get(key)
        if latents is None and self.folder is not None:
            latents = self.folder.get(key)
            if latents is not None:
                latents = latents.to(device)
                self.cache.put(key, latents)
        return latents

    def _keep(self, key: str, latents: Tensor) -> None:
        self.cache.put(key, latents)
        if self.folder is not None:
            self.folder.put(key, latents)

    def _keys(self, kind: str, cameras: CameraPath, content: Float[Tensor, "N *any"]) -> list[str]:
        """For each row of `content` a digest of everything that its encoded map depends on."""
        codec = self.codec
        weights = codec.spec.digest or repr(codec.spec)
        encoding = codec.encoding if isinstance(codec, NetworkCodec) else ""
        size = (cameras.height, cameras.width, tuple(content.shape[1:]))
        settings = repr((KEY_FORMAT, kind, size, weights, encoding, self.plucker_dtype, content.device.type))
        rows = content.detach().float().cpu().contiguous().numpy()
        return [hashlib.sha256(settings.encode() + row.tobytes()).hexdigest() for row in rows]


def _latent_folder(codec: VideoCodec, cache_folder: Path | Literal["auto"] | None) -> LatentFolder | None:
    """The folder that `cache_folder` asks for; ValueError if the codec has no digest of its weights."""
    is_network = isinstance(codec, NetworkCodec) and bool(codec.spec.digest)
    if cache_folder is None or (cache_folder == "auto" and not is_network):
        return None
    if not codec.spec.digest:
        raise ValueError(
            f"to keep encoded maps in {cache_folder} the codec needs a digest of its weights, found "
            f"{codec.spec.codec} without: set cache_folder to None"
        )
    return LatentFolder(default_cache_folder() if cache_folder == "auto" else Path(cache_folder))


def time_video(times: Float[Tensor, "B L"], height: int, width: int) -> Float[Tensor, "B 3 L H W"]:
    """Times from 0 to 1 as videos of one colour a frame: 2 [t, cos t, sin t] - 1.

    Source: docs/reference/decoder.md, "Time embedding".
    """
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
