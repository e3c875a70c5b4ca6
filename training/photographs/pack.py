"""Reads a pack of pictures."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from lyra_ns.synthetic.textures import NUM_PATTERNS, SOURCE_SIZE, TextureBank
from lyra_ns.synthetic.patterns import draw_pattern


class Pack:
    def __init__(self, path):
        self.path = Path(path)
        with zipfile.ZipFile(self.path) as file:
            self._all = sorted(file.namelist())
        self._bytes = {}

    def names(self, kind):
        return [name for name in self._all if name.startswith(f"{kind}/")]

    def read(self, name):
        with zipfile.ZipFile(self.path) as file:
            data = file.read(name)
        image = Image.open(io.BytesIO(data))
        return np.array(image.convert("RGBA" if name.startswith("cutouts/") else "RGB"))


def texture_bank(pack):
    squares = []
    for name in pack.names("textures") + pack.names("photographs"):
        image = Image.fromarray(pack.read(name))
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side)).resize((SOURCE_SIZE, SOURCE_SIZE))
        squares.append(torch.from_numpy(np.array(image)).permute(2, 0, 1))
    num = NUM_PATTERNS[False]
    patterns = (
        (torch.stack([draw_pattern(0, k, SOURCE_SIZE, False) for k in range(num)]) * 255).round().byte()
    )
    images = torch.cat([torch.stack(squares), patterns])
    is_photograph = torch.arange(len(images)) < len(squares)
    return TextureBank(images, torch.zeros(len(images), dtype=torch.bool), is_photograph)
