"""Procedural scenes with exact depth and poses, written in the official layout."""

from lyra_ns.synthetic.render import RenderedFrames, SceneRenderer
from lyra_ns.synthetic.scenes import ProceduralScene, make_scene
from lyra_ns.synthetic.textures import (
    TextureBank,
    load_texture_atlas,
    load_textures,
    packaged_textures,
    save_texture_atlas,
    textures_from_folder,
    textures_from_pack,
)
from lyra_ns.synthetic.writer import write_sample_data

__all__ = [
    "ProceduralScene",
    "RenderedFrames",
    "SceneRenderer",
    "TextureBank",
    "load_texture_atlas",
    "load_textures",
    "make_scene",
    "packaged_textures",
    "save_texture_atlas",
    "textures_from_folder",
    "textures_from_pack",
    "write_sample_data",
]
