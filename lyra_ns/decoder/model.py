"""The latent Gaussian decoder: video latents and camera rays in, one 3D Gaussian for each cell out.

The network of docs/reference/decoder.md, "Forward pass", with the keys under "Parameters" there. Tokens of
all views form one sequence in the order view, latent frame, row, column; views are told apart by their rays
and their order alone.

Every block is one or two branches that add to the stream what they make of its norm. Without gradient the
blocks run as one chain: the addition of one branch and the norm of the next are one kernel
(ops/norm_triton.py), so that the stream is read once for both.

Shape letters: B scenes, V views (trajectories), C latent channels (C2 of a ray map: twice as many), T latent
frames (T1: and one more), h w latent cells, N tokens of all views, E width, G Gaussians of all views.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lyra_ns.cameras import RayGrid
from lyra_ns.decoder.blocks import (
    GaussianDeconvolution,
    MambaBlock,
    PatchEmbedding,
    TransformerBlock,
    choose_policy,
    run_block,
)
from lyra_ns.decoder.conditioning import Conditioning
from lyra_ns.decoder.config import DecoderConfig, block_kinds
from lyra_ns.gaussians import NUM_RAW_CHANNELS, Gaussians, gaussians_on_cells
from lyra_ns.ops.ssd import choose_scan_backend
from lyra_ns.ops.ssd_types import ScanName


def suits_chain(scan: ScanName) -> bool:
    """Whether the blocks may run as a chain: no gradient wanted, and kernels of our own at work."""
    return not torch.is_grad_enabled() and scan == "fused"


def branch_dtype(tokens: Tensor) -> torch.dtype:
    """The dtype of a branch's products, so that automatic mixed precision makes no copy of its own."""
    return torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else tokens.dtype


def residual_branches(blocks: Iterable[nn.Module]) -> Iterator[tuple[nn.RMSNorm | nn.LayerNorm, nn.Module]]:
    """The norm and the branch behind it, for every branch of the blocks in order."""
    for block in blocks:
        if isinstance(block, MambaBlock):
            yield block.norm, block.mamba
        else:
            assert isinstance(block, TransformerBlock)
            yield block.norm1, block.attn
            yield block.norm2, block.mlp


class LatentGaussianDecoder(nn.Module):
    """The whole network; `forward` for Gaussians, `raw` for a pure function of tensors."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.codec_digest = ""
        """Fingerprint of the codec it was trained with, stored beside the weights; empty: unknown."""
        self.scan = choose_scan_backend(config.ssd_backend)
        channels, width, patch = config.latent_channels, config.width, config.patch_size
        self.patch_embed = PatchEmbedding(channels, width, patch)
        self.patch_plucker_embed = PatchEmbedding(2 * channels, width, patch)
        # Part of every official file, of the static model too, which does not use them.
        self.patch_time_embed = PatchEmbedding(channels, width, patch)
        self.patch_time_embed_tgt = PatchEmbedding(channels, width, patch)
        self.enc_blocks = nn.ModuleList(
            MambaBlock(config, self.scan) if kind == "M" else TransformerBlock(config)
            for kind in block_kinds(config.pattern, config.depth)
        )
        self.enc_norm = nn.LayerNorm(width, eps=1e-6)
        self.deconv = GaussianDeconvolution(width, config.temporal_stride, config.cells_per_token)
        self._initialise()
        if config.input_statistics:
            for name, size in (("latent", channels), ("plucker", 2 * channels)):
                self.register_buffer(f"{name}_mean", torch.zeros(size))
                self.register_buffer(f"{name}_std", torch.ones(size))
        if config.parity:
            self.to(torch.bfloat16)

    @torch.no_grad()
    def _initialise(self) -> None:
        """Starting weights (docs/reference/decoder.md, "Patch embeddings" and "Blocks")."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        silent = (self.patch_plucker_embed, self.patch_time_embed, self.patch_time_embed_tgt)
        for embedding in (self.patch_embed, *silent):
            for parameter in embedding.proj.parameters():
                nn.init.zeros_(parameter)
        image = self.patch_embed.proj
        fan_out = math.prod(image.kernel_size) * image.out_channels
        nn.init.normal_(image.weight, std=math.sqrt(2.0 / fan_out))
        if self.config.init == "damped":
            for embedding in silent:
                # The norm of a zero vector multiplies gradients by 1 / sqrt(eps) = 316.
                nn.init.constant_(embedding.norm.weight, 0.01)

    @torch.no_grad()
    def set_input_statistics(
        self, latents: Float[Tensor, "B V C T h w"], plucker: Float[Tensor, "B V C2 T h w"]
    ) -> None:
        """Measure the statistics that whiten the inputs on a representative batch."""
        if not self.config.input_statistics:
            raise ValueError(
                "this decoder keeps no input statistics: set input_statistics in its DecoderConfig"
            )
        for name, sample in (("latent", latents), ("plucker", plucker)):
            by_channel = sample.float().transpose(0, 2).flatten(1)
            # A channel that hardly varies (constant poses) would otherwise blow up elsewhere.
            self.get_buffer(f"{name}_mean").copy_(by_channel.mean(1))
            self.get_buffer(f"{name}_std").copy_(by_channel.std(1).clamp(min=0.05))

    def forward(self, raw_latents: Float[Tensor, "B V C T h w"], conditioning: Conditioning) -> Gaussians:
        """Gaussians [B, G] in the frame of the reference camera, not pruned, float32.

        `raw_latents` are in the codec's own space (`codec.from_diffusion` of what is stored). The rays must
        lie on a grid of one cell per Gaussian.
        """
        raw = self.raw(raw_latents, conditioning.plucker, conditioning.time)
        return self.gaussians(raw, conditioning)

    def gaussians(self, raw: Float[Tensor, "B G 12"], conditioning: Conditioning) -> Gaussians:
        """Gaussians of raw channels that `raw` gave, each on the ray of its cell."""
        rays = conditioning.rays
        num_rays = math.prod(rays.directions.shape[1:-1])
        if num_rays != raw.shape[1]:
            raise ValueError(
                f"{raw.shape[1]} Gaussians need one ray each, found {num_rays} "
                f"(grid {tuple(rays.directions.shape[1:-1])}): build the conditioning with cell_size "
                f"{self.config.cell_size} and as many frames as the latents stand for"
            )
        return self.activate(raw, rays.flatten_cells())

    def activate(self, raw: Float[Tensor, "B G 12"], cells: RayGrid) -> Gaussians:
        """Gaussians of raw channels on the rays `cells` [B, 1, G], which need not fill a grid; float32."""
        if not self.config.parity:
            return gaussians_on_cells(raw.float(), cells, self.config.head)
        coarse = gaussians_on_cells(raw, cells.to(raw.dtype), self.config.head)
        return replace(coarse, **{name: value.float() for name, value in vars(coarse).items()})

    def raw(
        self,
        latents: Float[Tensor, "B V C T h w"],
        plucker: Float[Tensor, "B V C2 T h w"],
        time: Float[Tensor, "B C T1 h w"] | None = None,
    ) -> Float[Tensor, "B G 12"]:
        """Raw channels distance, rgb, scale, rotation, opacity, in the order view, frame, row, column.

        `time` holds the latents of the source times, then those of the target time as one more latent frame.
        Tensors in, one tensor out, without synchronisation: fit for a CUDA graph.
        """
        tokens = self.encode(latents, plucker, time)
        with torch.autocast(latents.device.type, enabled=False):
            return self.head(tokens, latents.shape)

    def encode(
        self,
        latents: Float[Tensor, "B V C T h w"],
        plucker: Float[Tensor, "B V C2 T h w"],
        time: Float[Tensor, "B C T1 h w"] | None = None,
    ) -> Float[Tensor, "B N E"]:
        """The tokens after all blocks, from which `head` or `pruned_gaussians` make Gaussians."""
        self._check_inputs(latents, plucker, time)
        if self.config.parity:
            dtype = self.enc_norm.weight.dtype
            latents, plucker = latents.to(dtype), plucker.to(dtype)
            time = None if time is None else time.to(dtype)
        device_type = latents.device.type
        # No cache of cast weights: each is used once, and a cache must not outlive a captured graph.
        with torch.autocast(
            device_type, torch.bfloat16, self.uses_autocast(device_type), cache_enabled=False
        ):
            # The stream between the blocks keeps the precision of the weights under autocast, too. It has no
            # name here, which would keep the embedding alive through all blocks.
            return self.trunk(self.embed(latents, plucker, time).to(self.enc_norm.weight.dtype))

    def embed(self, latents: Tensor, plucker: Tensor, time: Tensor | None) -> Float[Tensor, "B N E"]:
        """The tokens of all views as one sequence."""
        num_scenes, num_views = latents.shape[:2]
        if self.config.input_statistics:
            latents = self._whiten("latent", latents)
            plucker = self._whiten("plucker", plucker)
        tokens = self.patch_embed(latents.flatten(0, 1)).unflatten(0, (num_scenes, num_views))
        if self.config.use_time and time is not None:
            tokens = tokens + self._embed_time(time)[:, None]
        tokens = tokens + self.patch_plucker_embed(plucker.flatten(0, 1)).view_as(tokens)
        return tokens.flatten(1, 2)

    def _embed_time(self, time: Float[Tensor, "B C T1 h w"]) -> Float[Tensor, "B N E"]:
        """Source time of each latent frame plus the one target time, the same for all views."""
        source = self.patch_time_embed(time[:, :, :-1])
        target = self.patch_time_embed_tgt(time[:, :, -1:])
        return (source.unflatten(1, (-1, target.shape[1])) + target[:, None]).flatten(1, 2)

    def trunk(self, tokens: Float[Tensor, "B N E"]) -> Float[Tensor, "B N E"]:
        """The tokens after all blocks."""
        num_tokens, scan = math.prod(tokens.shape[:-1]), self.scan.form_on(tokens.device)
        if not suits_chain(scan):
            policy = choose_policy(self.config, num_tokens, tokens.device, scan)
            for block in self.enc_blocks:
                tokens = run_block(block, tokens, policy)
            return tokens
        from lyra_ns.ops.norm_triton import add_and_norm

        # Here and not in a function, whose caller would keep the first tokens alive through all branches.
        update = None
        for norm, branch in residual_branches(self.enc_blocks):
            tokens, update = add_and_norm(tokens, update, norm, branch_dtype(tokens))
            update = branch(update)
        return tokens if update is None else tokens + update

    def head(self, tokens: Float[Tensor, "B N E"], latent_shape: torch.Size) -> Float[Tensor, "B G 12"]:
        """Raw channels of the tokens of latents [B, V, C, T, h, w], in the dtype of the weights."""
        num_scenes, num_views, _, latent_frames, height, width = latent_shape
        rows, columns = height // self.config.patch_size, width // self.config.patch_size
        tokens = tokens.reshape(num_scenes * num_views, latent_frames, rows, columns, self.config.width)
        return self.deconv(self.normed(tokens)).reshape(num_scenes, -1, NUM_RAW_CHANNELS)

    def normed(self, tokens: Float[Tensor, "*batch E"]) -> Float[Tensor, "*batch E"]:
        """Tokens of the trunk as the head takes them, in the dtype of the weights."""
        return self.enc_norm(tokens.to(self.enc_norm.weight.dtype))

    def _whiten(self, name: str, inputs: Float[Tensor, "B V C T h w"]) -> Float[Tensor, "B V C T h w"]:
        mean, std = self.get_buffer(f"{name}_mean"), self.get_buffer(f"{name}_std")
        return (inputs - mean[:, None, None, None]) / std[:, None, None, None]

    def uses_autocast(self, device_type: str) -> bool:
        """Whether the blocks compute in bfloat16 on devices of this type while weights keep their own."""
        if self.config.parity or self.config.trunk_dtype == "float32":
            return False
        return device_type == "cuda" or self.config.trunk_dtype == "bfloat16"

    def _check_inputs(self, latents: Tensor, plucker: Tensor, time: Tensor | None) -> None:
        channels, patch = self.config.latent_channels, self.config.patch_size
        height, width = latents.shape[-2:]
        if latents.shape[2] != channels:
            raise ValueError(
                f"the decoder expects latents of {channels} channels, found {latents.shape[2]} in "
                f"{tuple(latents.shape)} [B, V, C, T, h, w]: were they encoded by the decoder's codec?"
            )
        if height % patch or width % patch:
            raise ValueError(
                f"latents must be multiples of {patch} cells high and wide, found {height}x{width}: "
                f"crop the images to multiples of {patch * self.config.spatial_stride} pixels"
            )
        expected = (*latents.shape[:2], 2 * channels, *latents.shape[3:])
        if plucker.shape != expected:
            raise ValueError(
                f"ray latents must have shape {tuple(expected)} beside these latents, found "
                f"{tuple(plucker.shape)}: build the conditioning from cameras of the same views and frames"
            )
        if not self.config.use_time:
            return
        expected_time = (latents.shape[0], channels, latents.shape[3] + 1, height, width)
        if time is None or time.shape != expected_time:
            found = "none" if time is None else f"shape {tuple(time.shape)}"
            raise ValueError(
                f"a dynamic decoder needs time latents of shape {expected_time}, found {found}: give "
                "ConditioningBuilder.build a target_time"
            )
