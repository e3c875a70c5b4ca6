"""Images and exact depth of a scene by ray casting; the same code on the CPU and on CUDA.

Rays of a camera are (x, y, 1) in its own frame, so the ray parameter is the z-depth. Every solid is tried on
the rectangle of the image that its projection covers; rectangles come from the CPU's copy of the cameras, so
nothing ever waits for the device. The nearest solid is remembered by number, and shaded once at the end.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from lyra_ns.cameras import CameraPath, project
from lyra_ns.synthetic.scenes import ProceduralScene
from lyra_ns.synthetic.shading import Shader
from lyra_ns.synthetic.solids import MISS, Vector, hit, unit_to_world

BEYOND = 1e4
"""Depth where a ray has met nothing yet."""
NEAR = 1e-2
"""Solids with a corner nearer than this in some camera are tried on the whole image."""


@dataclass(frozen=True)
class WorkSize:
    """Rays that one device takes at once."""

    cast: int
    """Rays cast at once: enough frames to hide what each call costs."""
    shade: int
    """Rays shaded at once: what caches or memory hold, with some thirty numbers for each ray."""


WORK_SIZES = {"cuda": WorkSize(1 << 23, 1 << 23), "cpu": WorkSize(1 << 19, 1 << 16)}
"""Work sizes by device type; on CUDA about 1.5 GB."""


@dataclass(frozen=True)
class RenderedFrames:
    """What a camera path sees of a scene."""

    rgb: UInt8[Tensor, "L 3 H W"]
    """Frames."""
    depth: Float[Tensor, "L H W"]
    """z-depth at the pixel centres."""


@dataclass(frozen=True)
class _Rays:
    """Rays of a regular grid over the images of F cameras, as components in camera axes."""

    x: Float[Tensor, "F 1 w"]
    y: Float[Tensor, "F h 1"]

    def within(self, matrix: Float[Tensor, "F 3 4"], area: tuple[slice, slice]) -> tuple[Vector, Vector]:
        """Origins and directions of the rays of a rectangle, mapped by an affine matrix from camera axes."""
        rows, columns = area
        x, y = self.x[:, :, columns], self.y[:, rows]
        m = matrix[..., None, None]
        origin = (m[:, 0, 3], m[:, 1, 3], m[:, 2, 3])
        direction = tuple(m[:, k, 0] * x + (m[:, k, 1] * y + m[:, k, 2]) for k in range(3))
        return origin, (direction[0], direction[1], direction[2])


class SceneRenderer:
    """Renders one scene on one device."""

    def __init__(
        self, scene: ProceduralScene, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> None:
        self.scene = scene
        self.device = torch.device(device)
        self.dtype = dtype
        self._work = WORK_SIZES["cuda" if self.device.type == "cuda" else "cpu"]
        self._shader = Shader(scene, self.device, dtype)

    def render(self, cameras: CameraPath, supersampling: int = 2) -> RenderedFrames:
        """Frames [L] of the cameras (on the CPU), each pixel the mean of `supersampling`^2 samples."""
        rays_per_frame = cameras.height * cameras.width * supersampling**2
        frames = max(1, self._work.cast // rays_per_frame)
        chunks = [
            self._render_chunk(cameras[start : start + frames], supersampling)
            for start in range(0, cameras.shape[0], frames)
        ]
        return RenderedFrames(*(torch.cat(parts) for parts in zip(*chunks, strict=True)))

    @torch.inference_mode()
    def _render_chunk(self, cameras: CameraPath, supersampling: int) -> tuple[Tensor, Tensor]:
        """Frames and depth of a few cameras."""
        to_world = unit_to_world(self.scene.solids, cameras.times.double())
        boxes = _projected_boxes(to_world, cameras)
        # From camera axes to the unit coordinates of each solid: [P, F, 3, 4], made in double precision.
        camera_to_unit = torch.linalg.inv(to_world) @ cameras.camera_to_world.double()[:, None]
        camera_to_unit = self._on_device(camera_to_unit[..., :3, :].transpose(0, 1))
        fine = cameras.resized(cameras.height * supersampling, cameras.width * supersampling)
        depth, nearest = self._find_nearest(fine, camera_to_unit, boxes)
        rgb = self._shade(fine, camera_to_unit, depth, nearest, supersampling)
        if supersampling > 1:
            depth, _ = self._find_nearest(cameras, camera_to_unit, boxes)
        return rgb, depth

    def _shade(
        self, cameras: CameraPath, camera_to_unit: Tensor, depth: Tensor, nearest: Tensor, supersampling: int
    ) -> UInt8[Tensor, "L 3 H W"]:
        """Frames from what the rays met, band by band."""
        frames, height, width = depth.shape
        rows = max(1, self._work.shade // (frames * width * supersampling)) * supersampling
        bands = []
        for start in range(0, height, rows):
            band = slice(start, min(start + rows, height))
            part = _rows(cameras, band)
            rays = self._rays(part)
            colours = self._shader.shade(
                part, rays.x, rays.y, camera_to_unit, depth[:, band], nearest[:, band], supersampling
            )
            mean = functional.avg_pool2d(colours.transpose(0, 1), supersampling)
            bands.append((mean * 255).round_().clamp_(0, 255).to(torch.uint8))
        return torch.cat(bands, 2)

    def _find_nearest(
        self,
        cameras: CameraPath,
        camera_to_unit: Float[Tensor, "P F 3 4"],
        boxes: list[tuple[float, ...] | None],
    ) -> tuple[Float[Tensor, "F h w"], UInt8[Tensor, "F h w"]]:
        """Depth and number of the nearest solid along each ray."""
        rays = self._rays(cameras)
        shape = (*cameras.shape, cameras.height, cameras.width)
        depth = torch.full(shape, BEYOND, device=self.device, dtype=self.dtype)
        nearest = torch.zeros(shape, device=self.device, dtype=torch.uint8)
        for number, (solid, box) in enumerate(zip(self.scene.solids, boxes, strict=True)):
            if box is None:
                continue
            area = _area(box, cameras.height, cameras.width)
            t = hit(solid, *rays.within(camera_to_unit[number], area), exits=solid.encloses)
            t = t + t.clamp(max=0) * -MISS  # behind the camera
            depth_there, nearest_there = depth[:, area[0], area[1]], nearest[:, area[0], area[1]]
            closer = t < depth_there
            depth_there.copy_(torch.minimum(t, depth_there))
            nearest_there.masked_fill_(closer, number)
        return depth, nearest

    def _rays(self, cameras: CameraPath) -> _Rays:
        """Rays through the pixel centres."""
        fx, fy, cx, cy = cameras.intrinsics.double().unbind(-1)
        columns = torch.arange(cameras.width, dtype=torch.float64) + 0.5
        rows = torch.arange(cameras.height, dtype=torch.float64) + 0.5
        x = (columns - cx[:, None]) / fx[:, None]
        y = (rows - cy[:, None]) / fy[:, None]
        return _Rays(self._on_device(x[:, None, :]), self._on_device(y[:, :, None]))

    def _on_device(self, values: Tensor) -> Tensor:
        """Values in the working precision on the renderer's device."""
        return values.to(self.dtype).contiguous().to(self.device, non_blocking=True)


def _projected_boxes(
    to_world: Float[Tensor, "F P 4 4"], cameras: CameraPath
) -> list[tuple[float, ...] | None]:
    """For each solid the image rectangle (left, top, right, bottom; 0 to 1) that holds it in all frames.

    None where it is out of sight; everything where it reaches behind a camera.
    """
    signs = torch.tensor([-1.0, 1.0], dtype=to_world.dtype)
    corners = torch.cartesian_prod(signs, signs, signs)
    points = (to_world[..., :3, :3] @ corners.T + to_world[..., :3, 3:]).transpose(-1, -2)
    count = points.shape[1]
    double = replace(
        cameras,
        camera_to_world=cameras.camera_to_world.double(),
        intrinsics=cameras.intrinsics.double(),
    )
    pixels, depth = project(points.flatten(1, 2), double)
    pixels, depth = (values.unflatten(1, (count, 8)) for values in (pixels, depth))
    size = torch.tensor([cameras.width, cameras.height], dtype=pixels.dtype)
    low, high = (pixels / size).amin((0, 2)), (pixels / size).amax((0, 2))
    nearest, farthest = depth.amin((0, 2)).tolist(), depth.amax((0, 2)).tolist()
    boxes: list[tuple[float, ...] | None] = []
    for k, (start, end) in enumerate(zip(low.tolist(), high.tolist(), strict=True)):
        if nearest[k] < NEAR:
            boxes.append((0.0, 0.0, 1.0, 1.0) if farthest[k] > NEAR else None)
        else:
            outside = end[0] < 0 or end[1] < 0 or start[0] > 1 or start[1] > 1
            boxes.append(None if outside else (*start, *end))
    return boxes


def _rows(cameras: CameraPath, band: slice) -> CameraPath:
    """Cameras whose images are a band of rows of the given ones."""
    intrinsics = cameras.intrinsics - cameras.intrinsics.new_tensor([0.0, 0.0, 0.0, band.start])
    return replace(cameras, intrinsics=intrinsics, height=band.stop - band.start)


def _area(box: tuple[float, ...], height: int, width: int) -> tuple[slice, slice]:
    """Rows and columns of a grid that cover a rectangle, with one to spare on each side."""
    left, top, right, bottom = box
    rows = slice(max(0, int(top * height) - 1), max(0, min(height, int(bottom * height) + 2)))
    columns = slice(max(0, int(left * width) - 1), max(0, min(width, int(right * width) + 2)))
    return rows, columns
