"""The .splat file, read back by its definition."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from lyra_ns.export.files import save_splat
from lyra_ns.gaussians import Gaussians


def test_splat_rows_hold_the_scene_in_order_of_importance(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    scene = Gaussians(
        means=torch.randn(40, 3, generator=generator),
        quats=functional.normalize(torch.randn(40, 4, generator=generator), dim=-1),
        scales=0.01 + torch.rand(40, 3, generator=generator),
        opacities=torch.rand(40, generator=generator),
        rgb=torch.rand(40, 3, generator=generator),
    )
    save_splat(scene, tmp_path / "scene.splat")
    content = (tmp_path / "scene.splat").read_bytes()
    assert len(content) == 40 * 32
    floats = np.frombuffer(content, "<f4").reshape(40, 8)
    numbers = np.frombuffer(content, np.uint8).reshape(40, 32)
    order = (scene.opacities * scene.scales.prod(-1)).argsort(descending=True)
    np.testing.assert_array_equal(floats[:, :3], scene.means[order].numpy())
    np.testing.assert_array_equal(floats[:, 3:6], scene.scales[order].numpy())
    np.testing.assert_allclose(numbers[:, 24:27] / 255, scene.rgb[order], atol=0.51 / 255)
    np.testing.assert_allclose(numbers[:, 27] / 255, scene.opacities[order], atol=0.51 / 255)
    np.testing.assert_allclose((numbers[:, 28:] - 128.0) / 128, scene.quats[order], atol=1.01 / 128)
