"""`ns-lyra generate`: from an image, a video, a prompt or latents to a scene, in one command."""

from __future__ import annotations

from dataclasses import dataclass

from lyra_ns.generation.settings import GenerateSettings


@dataclass(kw_only=True)
class Generate(GenerateSettings):
    """Turn an image, a video, ViPE's output, a prompt or ready latents into a scene of Gaussians.

    Writes OUTPUT/scene.ply, scene.html, video.mp4, contact_sheet.png, latents/ (in the official layout) and
    record.json, all of them or none. Without weights of a video model the picture is moved by its depth along
    the camera paths: what it does not show is then a smooth guess, and nothing is generated.
    """

    def run(self) -> None:
        """Make the scene; stages, their seconds and the files are printed."""
        from lyra_ns.generation.run import generate

        generate(self)
