"""The web page's contents, without a browser."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from lyra_ns.cameras import CameraPath
from lyra_ns.export.html import centre_depth, pack_splats, save_html
from lyra_ns.gaussians import Gaussians

CAMERA = CameraPath(
    torch.eye(4), torch.tensor([50.0, 50.0, 40.0, 25.0]), torch.tensor(0.0), height=50, width=80
)


@pytest.fixture
def scene() -> Gaussians:
    generator = torch.Generator().manual_seed(0)
    return Gaussians(
        means=torch.randn(300, 3, generator=generator) + torch.tensor([0.0, 0.0, 6.0]),
        quats=functional.normalize(torch.randn(300, 4, generator=generator), dim=-1),
        scales=torch.exp(-4 + 2 * torch.randn(300, 3, generator=generator)),
        opacities=torch.rand(300, generator=generator),
        rgb=torch.rand(300, 3, generator=generator),
    )


def element(page: str, name: str) -> str:
    """Text of the script element with this id."""
    return re.search(rf'<script id="{name}"[^>]*>(.*?)</script>', page, re.DOTALL).group(1)


def unpacked_tens(word: np.ndarray) -> np.ndarray:
    """The three ten-bit numbers of each word."""
    return np.stack([word & 1023, word >> 10 & 1023, word >> 20 & 1023], -1).astype(np.float64)


def test_packed_words_keep_the_scene(scene: Gaussians) -> None:
    words, smallest, step = pack_splats(scene)
    np.testing.assert_array_equal(words[:, :3].copy().view(np.float32), scene.means)
    rgba = words[:, 3:4].copy().view(np.uint8)
    np.testing.assert_allclose(rgba[:, :3] / 255, scene.rgb, atol=0.51 / 255)
    np.testing.assert_allclose(rgba[:, 3] / 255, scene.opacities, atol=0.51 / 255)
    scales = np.exp(smallest + step * unpacked_tens(words[:, 4]))
    np.testing.assert_allclose(scales, scene.scales, rtol=0.51 * step)
    small = (unpacked_tens(words[:, 5]) / 1023 * 2 - 1) / np.sqrt(2)
    large = np.sqrt(1 - (small**2).sum(-1))
    quats = np.stack(
        [
            np.insert(part, left, first)
            for part, left, first in zip(small, words[:, 5] >> 30, large, strict=True)
        ]
    )
    np.testing.assert_allclose(np.abs((quats * scene.quats.numpy()).sum(-1)), 1.0, atol=5e-6)


def test_page_holds_everything_and_asks_for_nothing(scene: Gaussians, tmp_path: Path) -> None:
    assert save_html(scene, tmp_path / "page.html", CAMERA, title='A <b>"bold"</b> & plain </script>') == 300
    page = (tmp_path / "page.html").read_text()
    assert "{{" not in page
    assert not re.search(r"https?://|@import|src=|import\(", page), "the page must not reach for anything"
    assert "<title>A &lt;b&gt;&quot;bold&quot;&lt;/b&gt; &amp; plain &lt;/script&gt;</title>" in page
    assert len(base64.b64decode(element(page, "splats"))) == 300 * 24
    embedded = json.loads(element(page, "scene"))
    assert (embedded["width"], embedded["height"], embedded["intrinsics"]) == (80, 50, [50, 50, 40, 25])
    assert embedded["depth"] == pytest.approx(centre_depth(scene, CAMERA))


def test_largest_page_keeps_the_most_opaque_and_stays_small(scene: Gaussians, tmp_path: Path) -> None:
    assert save_html(scene, tmp_path / "page.html", CAMERA, max_splats=100) == 100
    page = (tmp_path / "page.html").read_text()
    assert "100 of 300 splats" in page
    words = np.frombuffer(base64.b64decode(element(page, "splats")), np.uint32).reshape(-1, 6)
    kept = scene.opacities.sort(descending=True).values[:100]
    np.testing.assert_allclose((words[:, 3] >> 24) / 255, kept, atol=0.51 / 255)
    num_words = 200_000 * 6
    assert len(page) + (num_words - words.size) * 4 * 4 / 3 < 8e6


def test_pages_that_would_show_nothing_are_refused(scene: Gaussians, tmp_path: Path) -> None:
    behind = replace(scene, means=scene.means * torch.tensor([1.0, 1.0, -1.0]))
    with pytest.raises(ValueError, match="sees none of the Gaussians"):
        save_html(behind, tmp_path / "page.html", CAMERA)
    with pytest.raises(ValueError, match="starts at one camera"):
        save_html(scene, tmp_path / "page.html", CAMERA.reshape(1))
    with pytest.raises(ValueError, match="at least one splat"):
        save_html(scene, tmp_path / "page.html", CAMERA, max_splats=0)
    assert list(tmp_path.iterdir()) == []
