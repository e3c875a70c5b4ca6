"""The pack as training reads it: its pictures, and the bank of textures that papers rendered scenes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lyra_ns.data.picture_pack import KINDS, Kind, Pack, PictureSource, write_pack

if TYPE_CHECKING:
    from lyra_ns.synthetic.textures import TextureBank

__all__ = ["KINDS", "Kind", "Pack", "PictureSource", "texture_bank", "write_pack"]


def texture_bank(pack: Pack) -> TextureBank:
    """The textures and photographs of the pack as `make_scene` takes them."""
    # Here, so that pictures are read without torch.
    from lyra_ns.synthetic.textures import textures_from_pack

    return textures_from_pack(pack)
