"""The Python API: what `import lyra_ns` gives, decoders by name, stored scenes, and Gaussians in files."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError

import lyra_ns
from lyra_ns.cameras import CameraPath
from lyra_ns.codec import load_codec
from lyra_ns.data.open import open_scene as open_stored
from lyra_ns.data.open import read_inputs
from lyra_ns.decoder.checkpoints import save_decoder
from lyra_ns.decoder.config import DecoderConfig
from lyra_ns.decoder.model import LatentGaussianDecoder
from lyra_ns.gaussians import GaussianHeadConfig, Gaussians
from lyra_ns.lyra import Lyra
from lyra_ns.reconstruction import Reconstructor
from tests.helpers.wall_scenes import write_wall_scenes

FOLDER = Path(lyra_ns.__file__).parent
TURNED = torch.tensor(
    [[0.0, 0.0, 1.0, 4.0], [0.0, 1.0, 0.0, -2.0], [-1.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 1.0]]
)
"""A pose far from the origin, a quarter turn about y."""


def small_decoder(scale_law: str = "footprint", **changes: Any) -> LatentGaussianDecoder:
    torch.manual_seed(0)
    sizes = {"width": 32, "depth": 2, "pattern": "1M1T", "num_heads": 2, "state_size": 8, "head_dim": 16}
    head = GaussianHeadConfig(near=1.0, far=30.0, distance_law="logarithmic", scale_law=scale_law)
    decoder = LatentGaussianDecoder(DecoderConfig(**sizes | {"head": head} | changes))
    with torch.no_grad():
        # Embeddings of rays and times start at 0, where no time changes anything.
        for weights in decoder.parameters():
            if not bool(weights.any()):
                weights.normal_(std=0.5)
    return decoder.eval()


@pytest.fixture(scope="module")
def walls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_wall_scenes(tmp_path_factory.mktemp("walls"), num_scenes=2)


@pytest.fixture(scope="module")
def lyra() -> Lyra:
    return Lyra(small_decoder())


def weights_of(lyra: Lyra) -> dict[str, torch.Tensor]:
    return dict(lyra.decoder.state_dict())


# The package


def test_importing_it_is_quick_and_loads_neither_torch_nor_nerfstudio() -> None:
    """The quickest of some, since other programs may hold the machine up."""
    code = (
        "import sys, time; start = time.perf_counter(); import lyra_ns; print(time.perf_counter() - start);"
        "print([name for name in ('torch', 'nerfstudio', 'numpy') if name in sys.modules], dir(lyra_ns))"
    )
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        for _ in range(3)
    ]
    assert min(float(run.split("\n")[0]) for run in runs) < 0.3
    assert runs[0].split("\n")[1].startswith("[] ['CameraPath', ")


def test_public_names_are_listed_and_there() -> None:
    assert set(dir(lyra_ns)) == set(lyra_ns.__all__)
    for name in dir(lyra_ns):
        assert getattr(lyra_ns, name) is not None
    assert lyra_ns.Gaussians is Gaussians
    with pytest.raises(AttributeError, match="no attribute 'reconstruct'"):
        lyra_ns.reconstruct  # noqa: B018


def test_the_stub_says_what_the_package_does() -> None:
    stub = ast.parse((FOLDER / "__init__.pyi").read_text())
    imports = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    told = {node.names[0].asname: node.module for node in imports}
    assert told == lyra_ns._PUBLIC
    assert (FOLDER / "py.typed").is_file()


# Decoders by name


def test_what_is_saved_is_loaded_again(lyra: Lyra, tmp_path: Path) -> None:
    folder = lyra.save_pretrained(str(tmp_path / "deep" / "folder"))
    for name in (folder, str(folder), folder / "model.safetensors"):
        again = lyra_ns.Lyra.from_pretrained(name, device="cpu")
        torch.testing.assert_close(weights_of(again), weights_of(lyra), rtol=0, atol=0)
        assert again.decoder.config == lyra.decoder.config
        assert not again.decoder.training


def test_the_shipped_decoder_is_the_default() -> None:
    shipped = lyra_ns.Lyra.from_pretrained(device="cpu")
    assert shipped.decoder.config.head.scale_law == "footprint"
    assert shipped.render_settings.response == "ewa"
    assert shipped.reconstructor().codec.spec.codec == "linear"


def test_what_is_not_there_is_said_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no decoder at .*nothing\.safetensors: give the path"):
        lyra_ns.Lyra.from_pretrained(tmp_path / "nothing.safetensors")
    with pytest.raises(FileNotFoundError, match=r"holds no step-\*.ckpt"):
        lyra_ns.Lyra.from_pretrained(str(tmp_path))
    with pytest.raises(ValueError, match="expected auto, cpu or cuda"):
        lyra_ns.Lyra.from_pretrained(device="abacus")


def test_decoders_come_from_the_hub(lyra: Lyra, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str, str | None]] = []
    own = lyra.save_pretrained(tmp_path / "own") / "model.safetensors"
    official = tmp_path / "lyra_dynamic.pt"
    torch.save({"module": weights_of(lyra)}, official)

    def download(name: str, file: str, revision: str | None = None) -> str:
        asked.append((name, file, revision))
        return str(own if file == own.name else official)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.chdir(tmp_path)
    found = lyra_ns.Lyra.from_pretrained("somebody/lyra-rooms", revision="v2", device="cpu")
    torch.testing.assert_close(weights_of(found), weights_of(lyra), rtol=0, atol=0)
    with pytest.raises(ValueError, match="does not fit the decoder's"):  # it is smaller than the official one
        lyra_ns.Lyra.from_pretrained("nvidia/Lyra", config="lyra-dynamic")
    assert asked == [
        ("somebody/lyra-rooms", "model.safetensors", "v2"),
        ("nvidia/Lyra", "lyra_dynamic.pt", None),
    ]
    Path("somebody").mkdir()
    shutil.copytree("own", "somebody/lyra-rooms")
    lyra_ns.Lyra.from_pretrained("somebody/lyra-rooms", device="cpu")
    assert len(asked) == 2, "a folder of that name goes first"


def test_a_hub_out_of_reach_is_said_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError) as caught:
        lyra_ns.Lyra.from_pretrained("nobody/no-lyra")
    assert isinstance(caught.value.__cause__, LocalEntryNotFoundError)
    sentence = "no decoder nobody/no-lyra: no file or folder here has that name, and the hub gave no "
    assert str(caught.value).startswith(f"{sentence}model.safetensors (it cannot be reached); give shipped")


class RecordedHub:
    """Stands in for the hub: keeps what is uploaded in a folder."""

    folder: Path
    made: dict[str, Any]

    def __init__(self, token: str | None = None) -> None:
        self.token = token

    def create_repo(self, name: str, **choices: Any) -> None:
        RecordedHub.made = {"name": name, "token": self.token, **choices}

    def upload_folder(self, repo_id: str, folder_path: str, commit_message: str) -> str:
        assert repo_id == RecordedHub.made["name"]
        shutil.copytree(folder_path, RecordedHub.folder)
        return f"https://the-hub/{repo_id}/commit/1"


def test_decoders_go_to_the_hub(lyra: Lyra, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    RecordedHub.folder = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub, "HfApi", RecordedHub)
    address = lyra.push_to_hub("somebody/lyra-rooms", private=True, token="secret")
    assert address == "https://the-hub/somebody/lyra-rooms/commit/1"
    assert RecordedHub.made == {
        "name": "somebody/lyra-rooms", "token": "secret", "private": True, "exist_ok": True,
    }  # fmt: skip
    again = lyra_ns.Lyra.from_pretrained(tmp_path / "hub", device="cpu")
    torch.testing.assert_close(weights_of(again), weights_of(lyra), rtol=0, atol=0)


def test_a_hub_that_takes_nothing_is_said_in_one_sentence(
    lyra: Lyra, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("no route to host.\nmore")

    monkeypatch.setattr(RecordedHub, "create_repo", refuse)
    monkeypatch.setattr(huggingface_hub, "HfApi", RecordedHub)
    with pytest.raises(OSError, match=r"did not take the decoder as a/b \(no route to host\): check"):
        lyra.push_to_hub("a/b")


# Stored scenes


def test_a_scene_is_read_when_it_is_asked_for(walls: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(walls, tmp_path / "copy")
    scene = lyra_ns.open_scene(str(copy))
    assert (scene.name, scene.trajectories) == ("wall_1", (5, 0, 1))
    assert scene.names == ("clockwise", "left", "right")
    assert (scene.codec, scene.is_dynamic) == ("linear", False)
    for path in copy.rglob("latent/wall_1*"):
        path.write_bytes(b"no latents")
    assert scene.cameras.shape == (3, 9)
    assert scene.frames([0, 8]).shape == (3, 2, 3, 48, 64)
    with pytest.raises(ValueError, match="wall_1"):
        scene.latents  # noqa: B018


def test_cameras_are_in_the_frame_of_the_first(walls: Path) -> None:
    scene = lyra_ns.open_scene(walls, "wall_0", [1, 0])
    assert scene.names == ("right", "left")
    assert torch.equal(scene.cameras.camera_to_world[0, 0], torch.eye(4))
    z, stored = read_inputs(open_stored(walls, "wall_0"), (1, 0))
    assert torch.equal(scene.latents, z)
    torch.testing.assert_close(scene.cameras.camera_to_world, stored.camera_to_world)


def test_trajectories_that_are_not_there_are_refused_at_once(walls: Path) -> None:
    with pytest.raises(ValueError, match=r"latents of the trajectories \[0, 1, 5\], found \[3\] asked for"):
        lyra_ns.open_scene(walls, trajectories=(3,))
    with pytest.raises(ValueError, match="holds no scene 'room'"):
        lyra_ns.open_scene(walls, "room")


# Gaussians from latents


def test_infer_gives_what_the_command_does(lyra: Lyra, walls: Path) -> None:
    scene = lyra_ns.open_scene(walls)
    z, cameras = read_inputs(open_stored(walls), (5, 0, 1))
    expected = Reconstructor(lyra.decoder, load_codec("linear"), prune_ratio=0.8)(z, cameras)
    found = lyra.infer(scene.latents, scene.cameras, prune_ratio=0.8)
    assert found.num == int(3 * 9 * 6 * 8 * (1.0 - 0.8))
    torch.testing.assert_close(vars(found), vars(expected), rtol=0, atol=0)
    assert lyra.infer(scene.latents, scene.cameras, prune_ratio=0.0).num == 3 * 9 * 6 * 8


def test_gaussians_lie_in_the_world_of_the_cameras(lyra: Lyra, walls: Path) -> None:
    scene = lyra_ns.open_scene(walls)
    moved: CameraPath = replace(scene.cameras, camera_to_world=TURNED @ scene.cameras.camera_to_world)
    there, here = lyra.infer(scene.latents, moved), lyra.infer(scene.latents, scene.cameras)
    torch.testing.assert_close(there.means, here.transform(TURNED).means, rtol=1e-3, atol=1e-3)
    seen_there = lyra_ns.render(there, moved[0], lyra.render_settings)
    seen_here = lyra_ns.render(here, scene.cameras[0], lyra.render_settings)
    assert seen_here.rgb.shape == (9, 48, 64, 3)
    assert float((seen_there.rgb - seen_here.rgb).abs().mean()) < 2e-3


def test_moments_are_for_dynamic_decoders(lyra: Lyra, walls: Path) -> None:
    scene = lyra_ns.open_scene(walls)
    with pytest.raises(ValueError, match=r"this decoder is static and knows no moments, found time 0\.5"):
        lyra.infer(scene.latents, scene.cameras, time=0.5)
    dynamic = Lyra(small_decoder(use_time=True))
    end, start = (dynamic.infer(scene.latents, scene.cameras, time=time) for time in (1.0, 0.0))
    assert torch.equal(dynamic.infer(scene.latents, scene.cameras).means, end.means)
    assert not torch.equal(start.means, end.means)
    with pytest.raises(ValueError, match="expected a time from 0 to 1, found 2"):
        dynamic.infer(scene.latents, scene.cameras, time=2.0)


def test_infer_refuses_what_does_not_fit(lyra: Lyra, walls: Path) -> None:
    scene = lyra_ns.open_scene(walls)
    with pytest.raises(ValueError, match=r"prune ratio must be in \[0, 1\), found 1.5"):
        lyra.infer(scene.latents, scene.cameras, prune_ratio=1.5)
    with pytest.raises(ValueError, match="latents of 2 trajectories came with cameras of 3"):
        lyra.infer(scene.latents[:2], scene.cameras)
    official = Lyra(small_decoder(scale_law="capped"))
    with pytest.raises(ValueError, match=r"give from_pretrained.*codec='cosmos:FOLDER'"):
        official.infer(scene.latents, scene.cameras)
    named = replace(official, codec="linear")
    assert named.infer(scene.latents, scene.cameras).num > 0
    assert named.render_settings.response == "auto"


@pytest.mark.slow
def test_evaluate_gives_the_table_of_the_command(
    lyra: Lyra, walls: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from lyra_ns.cli.evaluate import Evaluate

    measures = lyra_ns.evaluate(lyra, str(walls), num_trajectories=[1, 2], baselines=False)
    assert measures.scenes == ("wall_1",)
    checkpoint = str(save_decoder(lyra.decoder, tmp_path / "lyra.safetensors"))
    Evaluate(data=walls, checkpoint=checkpoint, num_trajectories=(1, 2), baselines=False, device="cpu").run()
    assert measures.table() in capsys.readouterr().out
    assert {row["method"] for row in measures.rows} == {"lyra"}
    with pytest.raises(ValueError, match="expected numbers of trajectories from 1 to 6"):
        lyra_ns.evaluate(lyra, walls, num_trajectories=(7,))


# Gaussians in files


@pytest.fixture
def gaussians() -> Gaussians:
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(50, 3, generator=generator) * 0.3 + torch.tensor([0.0, 0.0, 3.0])
    quats = torch.nn.functional.normalize(torch.randn(50, 4, generator=generator), dim=-1)
    scales = torch.rand(50, 3, generator=generator) * 0.1 + 0.01
    opacities = torch.rand(50, generator=generator) * 0.9 + 0.05
    return Gaussians(means, quats, scales, opacities, torch.rand(50, 3, generator=generator))


@pytest.mark.parametrize("ending", [".ply", ".splat", ".html"])
def test_the_ending_says_what_is_written(
    gaussians: Gaussians, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    path = gaussians.save(f"~/scene{ending}")
    assert path == tmp_path / f"scene{ending}"
    beginning = {".ply": b"ply\n", ".html": b"<!doctype html"}.get(ending, b"")
    assert path.read_bytes().lower().startswith(beginning)
    if ending == ".splat":
        assert path.stat().st_size == 32 * gaussians.num


def test_a_ply_is_read_back(gaussians: Gaussians, tmp_path: Path) -> None:
    again = Gaussians.load(str(gaussians.save(tmp_path / "scene.ply")))
    torch.testing.assert_close(vars(again), vars(gaussians), rtol=1e-5, atol=1e-5)


def test_a_page_starts_at_its_camera(gaussians: Gaussians, tmp_path: Path) -> None:
    intrinsics = torch.tensor([50.0, 50.0, 32.0, 24.0])
    camera = CameraPath(torch.eye(4), intrinsics, torch.tensor(0.0), 48, 64)
    page = gaussians.save(tmp_path / "own.html", camera=camera, title="A <wall>").read_text()
    assert '"width": 64' in page
    assert "A &lt;wall&gt;" in page
    assert '"width": 1280' in gaussians.save(tmp_path / "usual.html").read_text()


def test_other_endings_are_refused(gaussians: Gaussians, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must end in \.ply, \.splat, \.html, found 'scene\.obj'"):
        gaussians.save(tmp_path / "scene.obj")
    with pytest.raises(ValueError, match=r"read from a \.ply alone, found 'scene\.splat'"):
        Gaussians.load(tmp_path / "scene.splat")
    assert not list(tmp_path.iterdir())
