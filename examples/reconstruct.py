"""Latents of a stored scene to Gaussians: `python examples/reconstruct.py data/lyra-sample`.

`ns-lyra sample-data data/lyra-sample` writes such a data set in a few minutes.
"""

from __future__ import annotations

from typing import Annotated

import tyro

import lyra_ns


def reconstruct(
    data: Annotated[str, tyro.conf.Positional],
    output: str = "scene.ply",
    checkpoint: str = "shipped",
    prune_ratio: float = 0.5,
    device: str = "auto",
) -> None:
    """Write the Gaussians of the first scene that DATA holds out; OUTPUT ends in .ply, .splat or .html."""
    lyra = lyra_ns.Lyra.from_pretrained(checkpoint, device=device)
    scene = lyra_ns.open_scene(data)
    gaussians = lyra.infer(scene.latents, scene.cameras, prune_ratio=prune_ratio)
    path = gaussians.save(output)
    print(f"{path}: {gaussians.num:,} Gaussians of {scene.name}, seen along {', '.join(scene.names)}")


if __name__ == "__main__":
    tyro.cli(reconstruct)
