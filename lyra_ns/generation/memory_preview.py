"""How much memory a run will take, as far as that is known before its models are loaded."""

from __future__ import annotations

from pathlib import Path

import torch

from lyra_ns.data.video_files import VideoSize
from lyra_ns.decoder import LatentGaussianDecoder
from lyra_ns.generation.clip_making import decoder_size, teacher_name
from lyra_ns.generation.decoder_input import is_small
from lyra_ns.generation.settings import GenerateSettings
from lyra_ns.memory_estimate import SceneSize, estimate_inference_memory, gib, inference_plan
from lyra_ns.memory_limits import available_bytes

CELL = 8
"""Pixels, and frames, of a latent cell along each axis."""


def memory_lines(
    settings: GenerateSettings,
    decoder: LatentGaussianDecoder,
    size: VideoSize,
    num_paths: int,
    device: torch.device,
) -> list[str]:
    """What decoder and teacher will need on the device, in words."""
    name = teacher_name(settings)
    if name == "gen3c" and is_small(decoder.config):
        size = decoder_size(settings, decoder, size)
    scene = SceneSize(num_paths, (size.num_frames - 1) // CELL + 1, size.height // CELL, size.width // CELL)
    codec = "linear" if is_small(decoder.config) else "cosmos"
    estimate = estimate_inference_memory(
        decoder.config,
        scene,
        inference_plan(codec, is_chunked=settings.memory == "low"),
        prune_ratio=settings.prune_ratio,
        codec=codec,
        scan=decoder.config.scan_form(decoder.scan.form_on(device), device),
        is_low_precision=decoder.config.parity or decoder.uses_autocast(device.type),
    )
    free = available_bytes(device)
    lines = [f"decoder: about {estimate}" + ("" if free is None else f"; {gib(free)} of {device} are free")]
    if name == "warp":
        return [*lines, "teacher warp: no network"]
    stored = _stored_bytes(settings.weights)
    weights = f"{gib(stored)} of weights on disk" if stored else "weights that are not in a folder here"
    return [*lines, f"teacher {name}: {weights}, and --memory {settings.memory}"]


def _stored_bytes(weights: str | None) -> int:
    """Bytes of the weights in a folder; 0 for a hub id."""
    folder = Path(weights or "").expanduser()
    if not weights or not folder.is_dir():
        return 0
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
