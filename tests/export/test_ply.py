"""PLY files: written fast and whole, read back, also from other writers."""

from __future__ import annotations

import math
import time
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from plyfile import PlyData, PlyElement
from torch.nn import functional

from lyra_ns.cameras import CameraPath
from lyra_ns.export.ply import PLY_FIELDS, SH_DC, load_ply, save_ply
from lyra_ns.gaussians import Gaussians
from lyra_ns.rendering import RenderSettings, render


def random_scene(num: int, seed: int = 0) -> Gaussians:
    """Gaussians in front of a camera at the origin, opacities from 0 to 1 included."""
    generator = torch.Generator().manual_seed(seed)
    depth = 2 + 4 * torch.rand(num, generator=generator)
    sideways = (torch.rand(num, 2, generator=generator) - 0.5) * depth[:, None]
    opacities = torch.rand(num, generator=generator)
    opacities[0], opacities[-1] = 0.0, 1.0
    return Gaussians(
        means=torch.cat([sideways, depth[:, None]], -1),
        quats=functional.normalize(torch.randn(num, 4, generator=generator), dim=-1),
        scales=0.02 + 0.2 * torch.rand(num, 3, generator=generator),
        opacities=opacities,
        rgb=torch.rand(num, 3, generator=generator),
    )


def vertices(gaussians: Gaussians, extra: tuple[str, ...] = ()) -> np.ndarray:
    """Rows as another trainer writes them: fields in another order, with higher harmonics, unnormalised."""
    columns = {
        **{f"rot_{k}": 3 * gaussians.quats[:, k] for k in range(4)},
        **{f"scale_{k}": gaussians.scales[:, k].log() for k in range(3)},
        "opacity": torch.logit(gaussians.opacities, eps=1e-6),
        **{f"f_dc_{k}": (gaussians.rgb[:, k] - 0.5) / SH_DC for k in range(3)},
        **dict.fromkeys(extra, torch.ones(gaussians.num)),
        **{name: gaussians.means[:, k] for k, name in enumerate("xyz")},
    }
    rows = np.empty(gaussians.num, [(name, "f4") for name in columns])
    for name, values in columns.items():
        rows[name] = values.numpy()
    return rows


def assert_same_scene(found: Gaussians, expected: Gaussians) -> None:
    """Equal up to the rounding of logarithms and the margin that opacities keep from 0 and 1."""
    for field in fields(expected):
        torch.testing.assert_close(
            getattr(found, field.name), getattr(expected, field.name), atol=2e-6, rtol=2e-6
        )


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    scene = random_scene(500)
    save_ply(scene, tmp_path / "new folder" / "scene.ply")
    assert_same_scene(load_ply(tmp_path / "new folder" / "scene.ply"), scene)


def test_reloaded_scene_renders_the_same(tmp_path: Path) -> None:
    scene = random_scene(800)
    save_ply(scene, tmp_path / "scene.ply")
    cameras = CameraPath(
        torch.eye(4)[None], torch.tensor([[60.0, 60.0, 32.0, 24.0]]), torch.zeros(1), height=48, width=64
    )
    settings = RenderSettings(backend="torch")
    before = render(scene, cameras, settings).rgb
    after = render(load_ply(tmp_path / "scene.ply"), cameras, settings).rgb
    assert before.std() > 0.1
    assert -10 * math.log10(max(1e-12, (before - after).square().mean().item())) >= 50


def test_plyfile_reads_the_standard_fields(tmp_path: Path) -> None:
    scene = random_scene(50)
    save_ply(scene, tmp_path / "scene.ply")
    vertex = PlyData.read(tmp_path / "scene.ply")["vertex"]
    assert tuple(found.name for found in vertex.properties) == PLY_FIELDS
    assert {found.val_dtype for found in vertex.properties} == {"f4"}
    assert (vertex["nx"] == 0).all()
    np.testing.assert_allclose(vertex["y"], scene.means[:, 1])
    np.testing.assert_allclose(np.exp(vertex["scale_2"]), scene.scales[:, 2], rtol=1e-5)
    np.testing.assert_allclose(0.5 + 0.28209479177387814 * vertex["f_dc_1"], scene.rgb[:, 1], atol=1e-6)
    assert np.isfinite(vertex["opacity"]).all()


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("byte_order", ["<", ">"])
def test_files_of_other_trainers_are_read(tmp_path: Path, text: bool, byte_order: str) -> None:
    scene = random_scene(20)
    rows = vertices(scene, extra=tuple(f"f_rest_{k}" for k in range(45)))
    path = tmp_path / "other.ply"
    PlyData([PlyElement.describe(rows, "vertex")], text=text, byte_order=byte_order).write(path)
    assert_same_scene(load_ply(path), scene)


def test_byte_colours_of_ns_export_are_read(tmp_path: Path) -> None:
    scene = random_scene(20)
    coloured = vertices(scene)
    names = [name for name in coloured.dtype.names if not name.startswith("f_dc")]
    rows = np.empty(
        20, [*((name, "f4") for name in names), *((name, "u1") for name in ("red", "green", "blue"))]
    )
    for name in names:
        rows[name] = coloured[name]
    for channel, name in enumerate(("red", "green", "blue")):
        rows[name] = np.round(scene.rgb[:, channel].numpy() * 255)
    PlyData([PlyElement.describe(rows, "vertex")]).write(tmp_path / "bytes.ply")
    torch.testing.assert_close(load_ply(tmp_path / "bytes.ply").rgb, scene.rgb, atol=0.5 / 255 + 1e-6, rtol=0)


def test_broken_scenes_are_refused_and_nothing_is_left(tmp_path: Path) -> None:
    scene = random_scene(10)
    path = tmp_path / "scene.ply"
    means = scene.means.clone()
    means[3:5, 1] = torch.nan
    with pytest.raises(ValueError, match="2 of 10 Gaussians have non-finite means"):
        save_ply(replace(scene, means=means), path)
    with pytest.raises(ValueError, match="10 of 10 Gaussians have a scale that is not positive"):
        save_ply(replace(scene, scales=-scene.scales), path)
    with pytest.raises(ValueError, match="found none"):
        save_ply(scene.select(torch.zeros(0, dtype=torch.long)), path)
    with pytest.raises(ValueError, match=r"gaussians.scene\(index\)"):
        save_ply(Gaussians(*(getattr(scene, field.name)[None] for field in fields(scene))), path)
    assert list(tmp_path.iterdir()) == []


def test_broken_files_are_explained(tmp_path: Path) -> None:
    scene = random_scene(10)
    path = tmp_path / "scene.ply"
    with pytest.raises(FileNotFoundError, match="no PLY file"):
        load_ply(path)
    save_ply(scene, path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    for content, reason in {
        whole[:-1]: "row 9: early end-of-file",
        whole[:60]: "early end-of-file",
        whole.replace(b"vertex 10", b"vertex " + b"9" * 12): "row 10: early end-of-file",
        whole.replace(b"little_endian", b"middle_endian"): "understand format 'binary_middle_endian'",
        whole.replace(b"vertex 10", b"vertex " + b"9" * 30): "cannot fit",
        whole.replace(b"vertex 10", b"vertex -1"): r"\(.*\)",
        whole.replace(b"binary_little_endian", b"ascii"): r"\(.*\)",
        whole.replace(b"binary_little_endian", b"ascii").replace(b"vertex 10", b"vertex " + b"9" * 30): r"\(",
        b"": "expected 'ply'",
    }.items():
        path.write_bytes(content)
        with pytest.raises(
            ValueError, match=f"scene.ply must be a whole PLY file.*{reason}.*download or exp"
        ):
            load_ply(path)
    torch.save(torch.zeros(10, 14), path)
    with pytest.raises(ValueError, match=r"expected 'ply'.*official Lyra save_ply writes a torch pickle"):
        load_ply(path)
    path.write_bytes(whole.replace(b"element vertex", b"element points"))
    with pytest.raises(ValueError, match="must list vertices, found elements points"):
        load_ply(path)
    path.write_bytes(whole.replace(b"float opacity", b"float opacite"))
    with pytest.raises(ValueError, match="lacks the vertex properties opacity:"):
        load_ply(path)
    rows = np.empty(2, [("x", object)])
    rows["x"] = [np.ones(1, np.int32), np.ones(2, np.int32)]
    PlyData([PlyElement.describe(rows, "vertex")]).write(path)
    with pytest.raises(ValueError, match="properties that are lists"):
        load_ply(path)
    path.write_bytes(whole[:-4] + np.float32(np.nan).tobytes())
    with pytest.raises(ValueError, match="1 of 10 Gaussians have non-finite quats"):
        load_ply(path)


@pytest.mark.slow
def test_two_million_gaussians_take_less_than_seconds(tmp_path: Path) -> None:
    """Seconds of the processor, not of the disk; a loop over vertices takes minutes."""
    scene = random_scene(2_044_415)
    started = time.process_time()
    save_ply(scene, tmp_path / "large.ply")
    written = time.process_time()
    found = load_ply(tmp_path / "large.ply")
    assert time.process_time() - written < 2
    assert written - started < 2
    assert torch.equal(found.means, scene.means)
