"""Procedural scenes with exact depth and poses, written in the official layout."""

from lyra_ns.synthetic.raycast import RenderedFrames, SceneRenderer
from lyra_ns.synthetic.scenes import ProceduralScene, make_scene
from lyra_ns.synthetic.textures import (
    TextureBank,
    load_texture_atlas,
    packaged_textures,
    save_texture_atlas,
    textures_from_folder,
)
from lyra_ns.synthetic.writer import write_sample_data

__all__ = [
    "ProceduralScene",
    "RenderedFrames",
    "SceneRenderer",
    "TextureBank",
    "load_texture_atlas",
    "make_scene",
    "packaged_textures",
    "save_texture_atlas",
    "textures_from_folder",
    "write_sample_data",
]
