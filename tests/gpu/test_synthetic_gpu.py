"""The ray caster draws the same pictures on CUDA as on the CPU."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
import torch

from lyra_ns.synthetic import SceneRenderer, make_scene, textures_from_folder
from lyra_ns.synthetic.writer import ClipSize, scene_cameras

pytestmark = pytest.mark.gpu
SIZE = ClipSize(num_frames=17, height=160, width=256)


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    from PIL import Image

    folder = tmp_path_factory.mktemp("pictures")
    for number in range(14):
        Image.effect_noise((300, 300), 20 + 5 * number).convert("RGB").save(folder / f"{number:02d}.png")
    return textures_from_folder(folder)


@pytest.mark.parametrize("dynamic", [False, True])
def test_cuda_and_cpu_see_the_same(bank, dynamic):
    scene = make_scene(0, 3, bank, dynamic=dynamic)
    family = "dynamic" if dynamic else "static"
    cameras = scene_cameras(0, scene.name, scene.centre_depth, SIZE, dynamic)[family, 1][::8]
    ours, truth = (SceneRenderer(scene, device).render(cameras) for device in ("cuda", "cpu"))
    error = (ours.depth.cpu() - truth.depth).abs() / truth.depth
    assert (error > 1e-4).float().mean() < 2e-3
    assert ((ours.rgb.cpu().int() - truth.rgb.int()).abs() > 2).float().mean() < 2e-3


def test_a_scene_of_six_paths_takes_a_fraction_of_a_second(bank):
    scenes = [make_scene(0, index, bank) for index in range(5)]
    cameras = [
        scene_cameras(0, scene.name, scene.centre_depth, SIZE)["static", number]
        for scene in scenes[:1]
        for number in range(6)
    ]
    joined = replace(
        cameras[0],
        camera_to_world=torch.cat([path.camera_to_world for path in cameras]),
        intrinsics=torch.cat([path.intrinsics for path in cameras]),
        times=torch.cat([path.times for path in cameras]),
    )
    SceneRenderer(scenes[0], "cuda").render(joined)
    torch.cuda.synchronize()
    start = time.perf_counter()
    for scene in scenes:
        SceneRenderer(scene, "cuda").render(joined)
    torch.cuda.synchronize()
    assert (time.perf_counter() - start) / len(scenes) < 0.5
