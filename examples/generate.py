"""A picture in memory to a scene: `python examples/generate.py photo.jpg --output scene.ply`.

Without weights of a video model the picture is moved by its depth (teacher warp): what it does not show is
then a smooth guess. With a GPU and converted weights of GEN3C give --weights FOLDER.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
import tyro
from PIL import Image

import lyra_ns


def generate(
    photo: Annotated[str, tyro.conf.Positional],
    output: str = "scene.ply",
    weights: str | None = None,
    num_trajectories: int = 6,
    height: int | None = None,
    width: int | None = None,
    num_frames: int | None = None,
    checkpoint: str = "shipped",
    device: str = "auto",
) -> None:
    """Write the Gaussians of a scene around PHOTO; sizes are those of the clips, by default the decoder's."""
    image = np.asarray(Image.open(photo).convert("RGB"))
    made = lyra_ns.generate(
        image,
        weights=weights,
        num_trajectories=num_trajectories,
        height=height,
        width=width,
        num_frames=num_frames,
        checkpoint=checkpoint,
        device=device,
        progress=True,
    )
    made.gaussians.save(output)
    print(f"{output}: {made.gaussians.num:,} Gaussians; depth: {made.record['depth']['source']}")


if __name__ == "__main__":
    tyro.cli(generate)
