"""`generate` on a GPU: the same scene as on the CPU but for rounding, and units fitted there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from lyra_ns.generation.run import GeneratedScene, generate
from lyra_ns.generation.settings import GenerateSettings
from lyra_ns.metrics import psnr
from lyra_ns.rendering import RenderSettings, render

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from skimage.data import coffee

    path = tmp_path_factory.mktemp("photo") / "coffee.png"
    Image.fromarray(coffee()).save(path)
    return path


def made(photo: Path, output: Path, device: str, **changes) -> GeneratedScene:
    chosen = {"depth": "plane", "units": 3.7, "num_trajectories": 2, "refine_steps": 0} | changes
    return generate(GenerateSettings(input=photo, output=output, device=device, **chosen))


def input_view(scene: GeneratedScene) -> torch.Tensor:
    """The scene from where the photograph was taken, on the CPU."""
    gaussians = scene.instants[0].gaussians.to("cpu")
    with torch.no_grad():
        return render(gaussians, scene.given.cameras[0, :1], RenderSettings(response="ewa")).rgb


def test_a_scene_is_the_same_on_both_devices(photo, tmp_path):
    on_gpu, on_cpu = (made(photo, tmp_path / device, device) for device in ("cuda", "cpu"))
    video = zip(on_gpu.given.videos, on_cpu.given.videos, strict=True)
    assert max(float((a.float() - b.float()).abs().mean()) for a, b in video) < 0.5
    assert float(psnr(input_view(on_gpu), input_view(on_cpu))) > 28
    truth = on_gpu.given.videos[0][:1].movedim(1, -1).float() / 255
    assert float(psnr(input_view(on_gpu), truth)) > 18


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_make_the_same_clips(photo, tmp_path):
    """Cameras to the byte, frames and latents up to the order of sums in splatting."""
    one, two = (made(photo, tmp_path / str(num), "auto", num_gpus=num) for num in (1, 2))
    assert (one.given.z - two.given.z).norm() < 0.02 * one.given.z.norm()
    for found, expected in zip(two.given.videos, one.given.videos, strict=True):
        assert (found.float() - expected.float()).abs().mean() < 0.5
    cameras = [path.relative_to(two.folder) for path in (two.folder / "latents").rglob("*.npz")]
    assert cameras
    assert all((one.folder / path).read_bytes() == (two.folder / path).read_bytes() for path in cameras)


def test_units_are_fitted_and_a_dry_run_looks_ahead(photo, tmp_path):
    scene = made(photo, tmp_path / "a", "cuda", units="fitted", num_trajectories=6)
    unit = scene.record["unit"]
    assert len(unit["tried"]) == 6
    assert 2 < unit["factor"] < 6.5
    made(photo, tmp_path / "b", "cuda", dry_run=True)
    assert (tmp_path / "b" / "preview" / "sheet.png").is_file()
