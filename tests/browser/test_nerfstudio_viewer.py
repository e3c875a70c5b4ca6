"""`ns-viewer` in a real browser: the page opens, shows the splats and has the panel."""

from __future__ import annotations

import io
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page

from tests.helpers.small_network import options_of_network
from tests.helpers.wall_scenes import write_wall_scenes

pytestmark = [pytest.mark.browser, pytest.mark.end_to_end, pytest.mark.timeout(300)]

BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where ns-viewer shows a run that was trained for one step."""
    folder = tmp_path_factory.mktemp("viewer")
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHONWARNINGS": "ignore"}
    train = [
        BIN / "ns-train",
        "lyra-tiny",
        "--data",
        write_wall_scenes(folder / "walls"),
        "--output-dir",
        folder,
    ]
    train += [
        "--timestamp",
        "run",
        "--vis",
        "tensorboard",
        "--max-num-iterations",
        "1",
        *options_of_network(),
    ]
    subprocess.run([*train, "--machine.device-type", "cpu"], env=environment, check=True, capture_output=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = folder / "walls" / "lyra-tiny" / "run" / "config.yml"
    view = [BIN / "ns-viewer", "--load-config", config, "--viewer.websocket-port", str(port)]
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(view, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        wait_for_port(port, process, folder / "log")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)


def wait_for_port(port: int, process: subprocess.Popen, log: Path) -> None:
    """Until something listens; with the log in the error if the viewer ends before."""
    for _ in range(180):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert process.poll() is None, log.read_text()[-3000:]
        time.sleep(0.5)
    raise AssertionError(f"no viewer after 90 s: {log.read_text()[-3000:]}")


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """An empty page, closed afterwards: it draws without end, on a processor that other tests need."""
    page = browser.new_page(viewport={"width": 1100, "height": 800})
    yield page
    page.close()


def test_viewer_shows_splats_and_controls(page: Page, address: str) -> None:
    """Controls of our panel in the page, and a picture that is neither empty nor of one colour."""
    page.goto(address)
    for label in ("Scene", "Trajectory 5", "Keep ratio", "Opacity threshold", "Max scale", "Shown", "Reset"):
        page.get_by_text(label, exact=True).first.wait_for(state="attached", timeout=60_000)
    page.get_by_text("Hide Train Cams").click()
    deadline = time.monotonic() + 60
    contrast = 0.0
    while contrast < 5.0 and time.monotonic() < deadline:
        time.sleep(1.0)
        picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
        contrast = float(np.asarray(picture)[250:550, 200:600].std())
    assert contrast >= 5.0
