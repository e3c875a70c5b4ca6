"""Pictures and settings of small data sets that the tests of the data maker make."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from lyra_ns.make_data.run import RunOptions
from lyra_ns.make_data.settings import MakeDataSettings
from lyra_ns.teachers.registry import TeacherChoice

SETTINGS = MakeDataSettings(
    height=32, width=48, num_frames=9, depth="plane", trajectories=(0, 4), teacher=TeacherChoice(device="cpu")
)
ON_CPU = RunOptions(device="cpu")


def smooth_picture(seed: int, height: int = 64, width: int = 96) -> Tensor:
    """Colours [3, H, W] of 8 bits that video compression keeps."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 4, 6, generator=generator)
    fine = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear", align_corners=True)
    return (fine[0] * 255).round().to(torch.uint8)


def save_picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(smooth_picture(seed).permute(1, 2, 0).numpy()).save(path)
