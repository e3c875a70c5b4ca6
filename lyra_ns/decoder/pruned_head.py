"""The decoder's head for kept Gaussians alone: opacity of all cells first, the rest where it is opaque.

Pruning keeps one Gaussian in five (docs/reference/decoder.md, "Pruning"). The opacity is one of twelve
channels of a linear map, so the cells that stay are known before anything else is computed. The other
channels follow in groups of latent frames: a matrix product for all tokens of the group, of whose results
only those of kept cells are read. Neither the raw channels nor the Gaussians of all cells ever exist. The
result is that of `prune(decoder.gaussians(decoder.head(...)))`, in its order.

Shape letters: B scenes, V views, T latent frames, N tokens, E width, F latent frames of all views of a scene,
L frames, K kept Gaussians.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lyra_ns.cameras import RayGrid
from lyra_ns.decoder.blocks import GaussianDeconvolution
from lyra_ns.decoder.model import LatentGaussianDecoder
from lyra_ns.gaussians import (
    NUM_RAW_CHANNELS,
    Gaussians,
    activate_opacity,
    most_opaque_in_place,
    num_kept,
)

OPACITY = slice(NUM_RAW_CHANNELS - 1, NUM_RAW_CHANNELS)
"""The last raw channel."""
ALL_BUT_OPACITY = slice(0, NUM_RAW_CHANNELS - 1)
"""The raw channels before it."""


@dataclass(frozen=True)
class _CellGrid:
    """Where the cells of one scene lie among its latent frames and tokens."""

    num_views: int
    latent_frames: int
    rows: int
    columns: int
    stride: int
    num_cropped: int
    cells_per_token: int

    @property
    def frames(self) -> int:
        return (self.latent_frames - 1) * self.stride + 1

    @property
    def cells_per_frame(self) -> int:
        return self.rows * self.columns * self.cells_per_token**2

    @property
    def num_cells(self) -> int:
        return self.num_views * self.frames * self.cells_per_frame

    def first_cell(self, latent_frame: int) -> int:
        """Position of the first cell of one of the F latent frames, or of the end."""
        view, in_view = divmod(latent_frame, self.latent_frames)
        frame = view * self.frames + max(0, in_view * self.stride - self.num_cropped)
        return frame * self.cells_per_frame


def pruned_gaussians(
    decoder: LatentGaussianDecoder,
    tokens: Float[Tensor, "B N E"],
    latent_shape: torch.Size,
    rays: RayGrid,
    prune_ratio: float,
    latent_frames_at_once: int | None = None,
) -> Gaussians:
    """Gaussians [B, K] from what `decoder.encode` gave for latents [B, V, C, T, h, w]; float32.

    Most opaque first, equal ones by position, as `prune` orders them; with nothing to prune, by position.
    `rays` [B, V, L, h', w'] as in `Conditioning`. Raw channels of at most `latent_frames_at_once` latent
    frames (default: all) exist at a time. A GPU is waited for once a scene.
    """
    if latent_frames_at_once is not None and latent_frames_at_once < 1:
        raise ValueError(f"latent_frames_at_once must be at least 1, found {latent_frames_at_once}")
    grid = _cell_grid(decoder, latent_shape)
    num_rays = math.prod(rays.directions.shape[1:-1])
    if num_rays != grid.num_cells:
        raise ValueError(
            f"{grid.num_cells} Gaussians need one ray each, found {num_rays}: build the conditioning with "
            f"cell_size {decoder.config.cell_size} and as many frames as the latents stand for"
        )
    at_once = latent_frames_at_once or grid.num_views * grid.latent_frames
    scenes = []
    with torch.autocast(tokens.device.type, enabled=False):
        for scene, own in enumerate(tokens):
            own = own.reshape(-1, grid.rows, grid.columns, tokens.shape[-1])
            rays_of_scene = RayGrid(*(values[scene].flatten(0, 1) for values in vars(rays).values()))
            scenes.append(_pruned_scene(decoder, own, grid, rays_of_scene, prune_ratio, at_once))
    return scenes[0] if len(scenes) == 1 else _stacked(scenes)


def _cell_grid(decoder: LatentGaussianDecoder, latent_shape: torch.Size) -> _CellGrid:
    _, num_views, _, latent_frames, height, width = latent_shape
    config = decoder.config
    return _CellGrid(
        num_views=num_views,
        latent_frames=latent_frames,
        rows=height // config.patch_size,
        columns=width // config.patch_size,
        stride=config.temporal_stride,
        num_cropped=decoder.deconv.num_cropped,
        cells_per_token=config.cells_per_token,
    )


def _stacked(scenes: list[Gaussians]) -> Gaussians:
    """Scenes [1, K] as one batch."""
    names = vars(scenes[0])
    return Gaussians(**{name: torch.cat([getattr(scene, name) for scene in scenes]) for name in names})


def _pruned_scene(
    decoder: LatentGaussianDecoder,
    tokens: Float[Tensor, "F rows columns E"],
    grid: _CellGrid,
    rays: RayGrid,
    prune_ratio: float,
    at_once: int,
) -> Gaussians:
    raw_opacity = _raw_opacity(decoder, tokens, grid, at_once)
    kept = num_kept(grid.num_cells, prune_ratio)
    if kept == grid.num_cells:
        positions = order = torch.arange(kept, device=tokens.device)
        others = _other_channels(decoder, tokens, grid, positions, at_once)
    else:
        # In the type of `activate`: rounding there makes ties, and those decide who stays.
        exact = raw_opacity.detach() if decoder.config.parity else raw_opacity.detach().float()
        opacity = activate_opacity(exact, decoder.config.head).float()
        positions = most_opaque_in_place(opacity, kept)
        order = opacity[positions].argsort(descending=True, stable=True)
        others = _other_channels(decoder, tokens, grid, positions, at_once)[order]
        positions = positions[order]
    raw = torch.cat([others, raw_opacity[positions, None]], -1)
    return decoder.activate(raw[None], _rays_of_cells(rays, positions))


def _raw_opacity(
    decoder: LatentGaussianDecoder, tokens: Float[Tensor, "F rows columns E"], grid: _CellGrid, at_once: int
) -> Float[Tensor, " cells"]:
    """The raw opacity of every cell."""
    patches = torch.cat(
        [decoder.deconv.patches(decoder.normed(group), OPACITY) for group in tokens.split(at_once)]
    )
    return decoder.deconv.frames(patches.unflatten(0, (grid.num_views, -1)), OPACITY).flatten()


def _other_channels(
    decoder: LatentGaussianDecoder,
    tokens: Float[Tensor, "F rows columns E"],
    grid: _CellGrid,
    positions: Int[Tensor, " K"],
    at_once: int,
) -> Float[Tensor, "K 11"]:
    """The raw channels before the opacity at ascending positions."""
    starts = range(0, len(tokens), at_once)
    bounds = [grid.first_cell(start) for start in [*starts, len(tokens)]]
    if len(starts) == 1:
        counts = [len(positions)]
    else:
        inner = torch.searchsorted(positions, torch.tensor(bounds, device=positions.device))
        counts = inner.diff().tolist()
    groups = []
    for start, here in zip(starts, positions.split(counts), strict=True):
        # The first frame of a latent frame gets a share from the one before, which a view's first has not.
        before = 1 if start % grid.latent_frames else 0
        patches = decoder.deconv.patches(
            decoder.normed(tokens[start - before : start + at_once]), ALL_BUT_OPACITY
        )
        groups.append(_cells_of_patches(decoder.deconv, patches, start - before, grid, here))
    return torch.cat(groups)


def _cells_of_patches(
    deconvolution: GaussianDeconvolution,
    patches: Float[Tensor, "f rows columns taps k k 11"],
    first_latent_frame: int,
    grid: _CellGrid,
    positions: Int[Tensor, " n"],
) -> Float[Tensor, "n 11"]:
    """Raw channels of the cells at `positions`, given the patches of their latent frames."""
    assert deconvolution.bias is not None
    view_frame, row, column = _frame_row_column(positions, grid)
    view = view_frame // grid.frames
    padded_frame = view_frame - view * grid.frames + grid.num_cropped
    in_view = padded_frame // grid.stride
    tap = padded_frame - in_view * grid.stride
    latent_frame = view * grid.latent_frames + in_view - first_latent_frame
    per_token = grid.cells_per_token
    token = (latent_frame * grid.rows + row // per_token) * grid.columns + column // per_token
    cell = (row % per_token) * per_token + column % per_token
    num_taps, cells = grid.stride + 1, per_token**2
    table = patches.reshape(-1, ALL_BUT_OPACITY.stop)
    values = table[(token * num_taps + tap) * cells + cell]
    # The last tap of the token before falls on the first frame of this one (never a view's first token).
    before = (token - grid.rows * grid.columns) * num_taps + num_taps - 1
    has_share = tap == 0
    share = table[torch.where(has_share, before * cells + cell, 0)]
    return values + torch.where(has_share[:, None], share, 0) + deconvolution.bias[ALL_BUT_OPACITY]


def _frame_row_column(
    positions: Int[Tensor, " n"], grid: _CellGrid
) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"], Int[Tensor, " n"]]:
    """Frame among those of all views, and row and column of the cell."""
    width = grid.columns * grid.cells_per_token
    frame = positions // grid.cells_per_frame
    in_frame = positions - frame * grid.cells_per_frame
    row = in_frame // width
    return frame, row, in_frame - row * width


def _rays_of_cells(rays: RayGrid, positions: Int[Tensor, " K"]) -> RayGrid:
    """The rays [1, 1, K] at `positions` of a grid [V L, h, w]; no origins are copied for other cells."""
    height, width = rays.cell_size.shape[-2:]
    frame = positions // (height * width)
    in_frame = positions - frame * (height * width)
    row = in_frame // width
    index = (frame, row, in_frame - row * width)
    return RayGrid(*(values[index][None, None] for values in vars(rays).values()))
