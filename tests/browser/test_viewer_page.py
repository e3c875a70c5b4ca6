"""The exported web page in a real browser: it opens without a network, and shows what our renderer shows."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from playwright.sync_api import Browser, Page
from torch.nn import functional

from lyra_ns.cameras import CameraPath, look_at
from lyra_ns.export.html import save_html
from lyra_ns.gaussians import Gaussians
from lyra_ns.rendering import RenderSettings, Response, render

pytestmark = pytest.mark.browser

HEIGHT, WIDTH = 120, 192


def balls() -> Gaussians:
    """Two coloured balls of flat, tilted Gaussians before a striped wall."""
    generator = torch.Generator().manual_seed(0)
    directions = functional.normalize(torch.randn(2, 1500, 3, generator=generator), dim=-1)
    centres = torch.tensor([[[-0.7, 0.3, 3.0]], [[0.6, -0.1, 4.0]]])
    side = torch.linspace(-1, 1, 60)
    y, x = torch.meshgrid(2 * side, 3 * side, indexing="ij")
    wall = torch.stack([x, y, 5 + 0.3 * x], -1).reshape(-1, 3)
    means = torch.cat([(centres + 0.6 * directions).reshape(-1, 3), wall])
    stripes = 0.5 + 0.5 * torch.sin(6 * wall[:, :1]) * torch.tensor([0.2, 0.6, 1.0])
    shade = 0.6 + 0.4 * directions[..., :1]
    colours = torch.tensor([[[0.9, 0.2, 0.1]], [[0.1, 0.7, 0.3]]]) * shade
    num = means.shape[0]
    return Gaussians(
        means=means,
        quats=functional.normalize(torch.randn(num, 4, generator=generator), dim=-1),
        scales=torch.tensor([0.08, 0.05, 0.02]).repeat(num, 1),
        opacities=0.3 + 0.69 * torch.rand(num, generator=generator),
        rgb=torch.cat([colours.reshape(-1, 3), stripes]),
    )


def camera() -> CameraPath:
    """An off-axis camera with its principal point beside the middle."""
    pose = look_at(torch.tensor([0.4, -0.5, -0.3]), torch.tensor([0.0, 0.0, 3.5]))
    intrinsics = torch.tensor([150.0, 140.0, WIDTH / 2 + 7, HEIGHT / 2 - 4])
    return CameraPath(pose, intrinsics, torch.tensor(0.0), height=HEIGHT, width=WIDTH)


def rendered(response: Response) -> np.ndarray:
    """The same view by our own renderer."""
    settings = RenderSettings(backend="torch", response=response)
    return render(balls(), camera().reshape(1), settings).rgb[0].clamp(0, 1).numpy()


def screenshot(page: Page) -> np.ndarray:
    """What the page shows, 0 to 1, without the caption."""
    page.add_style_tag(content="footer { display: none } canvas { transition: none !important }")
    page.wait_for_timeout(200)
    return np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("RGB")) / 255


def psnr(left: np.ndarray, right: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB."""
    return -10 * math.log10(((left - right) ** 2).mean())


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """An empty page of the reference image's size, without a network; it must stay free of complaints."""
    page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
    page.context.set_offline(True)
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    yield page
    page.close()
    assert complaints == []


def open_scene(page: Page, path: Path, fragment: str = "#still") -> None:
    """Go to the file and wait until it is drawn."""
    page.goto(path.as_uri() + fragment)
    page.wait_for_function("window.lyra.ready || window.lyra.error", timeout=40_000)
    assert page.evaluate("window.lyra.error") is None


@pytest.mark.parametrize("response", ["ray3d", "ewa"])
def test_page_shows_what_our_renderer_shows(page: Page, tmp_path: Path, response: Response) -> None:
    save_html(balls(), tmp_path / "scene.html", camera(), response=response)
    open_scene(page, tmp_path / "scene.html")
    assert page.evaluate("window.lyra.numSplats") == balls().num
    shown = screenshot(page)
    other = "ewa" if response == "ray3d" else "ray3d"
    assert shown.shape == (HEIGHT, WIDTH, 3)
    assert shown.std() > 0.1, "the page is empty"
    assert psnr(shown, rendered(response)) >= 35
    assert psnr(shown, rendered(response)) > psnr(shown, rendered(other)) + 3


def test_dragging_turns_the_scene_and_keys_bring_it_back(page: Page, tmp_path: Path) -> None:
    save_html(balls(), tmp_path / "scene.html", camera())
    open_scene(page, tmp_path / "scene.html")
    before = screenshot(page)
    page.mouse.move(90, 60)
    page.mouse.down()
    page.mouse.move(110, 60, steps=4)
    page.mouse.up()
    page.wait_for_timeout(1200)
    turned = screenshot(page)
    assert psnr(before, turned) < 25
    red = [float(np.average(np.arange(WIDTH), weights=redness(image).sum(0))) for image in (before, turned)]
    assert red[1] > red[0] + 2, "the near ball follows the hand"
    page.mouse.wheel(0, -300)
    page.wait_for_timeout(1200)
    assert redness(screenshot(page)).sum() > 1.2 * redness(turned).sum(), "zooming in enlarges"
    page.keyboard.press("r")
    page.wait_for_timeout(1500)
    assert psnr(before, screenshot(page)) > 35


def redness(image: np.ndarray) -> np.ndarray:
    """How far red outshines the other colours."""
    return (image[..., 0] - image[..., 1:].max(-1)).clip(0.1) - 0.1


def test_scene_sways_until_it_is_touched(page: Page, tmp_path: Path) -> None:
    save_html(balls(), tmp_path / "scene.html", camera(), sway_radians=0.2)
    open_scene(page, tmp_path / "scene.html", fragment="")
    first = screenshot(page)
    page.wait_for_timeout(1200)
    assert psnr(first, screenshot(page)) < 30
    page.keyboard.press("ArrowLeft")
    # It glides to rest, which takes a slow machine longer; a page that goes on swaying never does.
    closeness = 0.0
    for _ in range(12):
        still = screenshot(page)
        page.wait_for_timeout(800)
        closeness = psnr(still, np.clip(screenshot(page) + 1e-4, 0, 1))
        if closeness > 60:
            break
    assert closeness > 60


def test_a_browser_without_webgl_is_told_so(page: Page, tmp_path: Path) -> None:
    save_html(balls(), tmp_path / "scene.html", camera())
    page.add_init_script("HTMLCanvasElement.prototype.getContext = () => null")
    page.goto((tmp_path / "scene.html").as_uri())
    page.wait_for_function("window.lyra.error")
    assert "WebGL 2" in page.locator("#problem").inner_text()
    assert page.evaluate("window.lyra.ready") is False


@pytest.mark.parametrize("response", ["ray3d", "ewa"])
def test_a_large_window_shows_the_same_picture_enlarged(
    page: Page, tmp_path: Path, response: Response
) -> None:
    """Splats that are widened for their image's own size leave no gaps in a view of three times that size."""
    save_html(balls(), tmp_path / "scene.html", camera(), response=response)
    page.set_viewport_size({"width": 3 * WIDTH, "height": 3 * HEIGHT})
    open_scene(page, tmp_path / "scene.html")
    large = screenshot(page)
    assert large.shape == (3 * HEIGHT, 3 * WIDTH, 3)
    same_size = large.reshape(HEIGHT, 3, WIDTH, 3, 3).mean((1, 3))
    assert psnr(same_size, rendered(response)) >= 42


def test_the_whole_caption_is_readable_on_a_phone(page: Page, tmp_path: Path) -> None:
    save_html(balls(), tmp_path / "scene.html", camera(), title="a_photograph_of_mine")
    page.set_viewport_size({"width": 360, "height": 640})
    open_scene(page, tmp_path / "scene.html")
    footer = page.locator("footer").evaluate("it => [it.scrollWidth - it.clientWidth, it.clientHeight]")
    assert footer[0] <= 0, "nothing is cut off"
    assert footer[1] < 100
