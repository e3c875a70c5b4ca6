"""Procedural scenes: exact depth, varied and clear content, and the data sets written from them."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from lyra_ns.cameras import CameraPath, look_at, project, ray_grid
from lyra_ns.codec import load_codec
from lyra_ns.data.picture_pack import Pack, write_pack
from lyra_ns.data.store import LyraStore, read_manifest, write_manifest
from lyra_ns.draws import Draws, generator_for
from lyra_ns.synthetic import (
    ProceduralScene,
    SceneRenderer,
    load_texture_atlas,
    load_textures,
    make_scene,
    packaged_textures,
    save_texture_atlas,
    textures_from_folder,
    textures_from_pack,
    write_sample_data,
)
from lyra_ns.synthetic.scenes import HEADROOM, Lighting, ScenePalette, camera_reach
from lyra_ns.synthetic.solids import Material, Shape, Solid, unit_to_world
from lyra_ns.synthetic.writer import ClipSize, scene_cameras
from tests.helpers import small_packs

SIZE = ClipSize(num_frames=9, height=64, width=96)
INSIDE = ClipSize(num_frames=9, height=32, width=48)
MATT = Material((0,))
LEAST_AGREEMENT_DB = 31.5
DIM = Lighting((0.0, -1.0, 0.0), 0.6, 0.0, (0.5, 0.5, 0.5))
SKY = Solid(Shape.ELLIPSOID, (0.0, 0.0, 0.0), (20.0, 20.0, 20.0), MATT, encloses=True, casts_shadow=False)


@pytest.fixture(scope="module")
def bank():
    return packaged_textures()


@pytest.fixture(scope="module")
def atlas(bank, tmp_path_factory):
    path = tmp_path_factory.mktemp("textures") / "atlas.safetensors"
    save_texture_atlas(path, bank)
    return path


def path_of(scene: ProceduralScene, number: int, size: ClipSize = SIZE) -> CameraPath:
    return scene_cameras(0, scene.name, scene.centre_depth, size, scene.is_dynamic)[
        "dynamic" if scene.is_dynamic else "static", number
    ]


def scene_of(*solids: Solid) -> ProceduralScene:
    textures = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return ProceduralScene("hand-made", 4.0, 1.0, [SKY, *solids], textures, DIM)


def camera_from(position: tuple[float, float, float], target: tuple[float, float, float]) -> CameraPath:
    pose = look_at(torch.tensor(position).double(), torch.tensor(target).double())
    intrinsics = SIZE.intrinsics(0, "any").double()
    return CameraPath(pose[None], intrinsics[None], torch.zeros(1).double(), SIZE.height, SIZE.width)


def hit_points(cameras: CameraPath, depth: torch.Tensor) -> torch.Tensor:
    rays = ray_grid(cameras, cameras.height, cameras.width)
    cosine = (rays.directions @ cameras.camera_to_world[:, None, :3, 2:3])[..., 0]
    return rays.origins + rays.directions * (depth / cosine)[..., None]


def test_depth_of_a_sphere_and_a_box_is_the_analytic_one():
    ball = Solid(Shape.ELLIPSOID, (0.3, -0.2, 4.0), (1.0, 1.0, 1.0), MATT)
    wall = Solid(Shape.BOX, (0.0, 0.0, 6.5), (30.0, 30.0, 0.5), MATT)
    cameras = camera_from((0.0, 0.0, 0.0), (0.0, 0.0, 1.0))
    depth = SceneRenderer(scene_of(ball, wall), dtype=torch.float64).render(cameras).depth[0]
    v, u = torch.meshgrid(torch.arange(64) + 0.5, torch.arange(96) + 0.5, indexing="ij")
    u, v, focal = u.double(), v.double(), SIZE.intrinsics(0, "any")[0].double()
    x, y = (u - 48) / focal, (v - 32) / focal
    a, b, c = x * x + y * y + 1, 0.3 * x - 0.2 * y + 4.0, 0.3**2 + 0.2**2 + 16 - 1
    root = b * b - a * c
    expected = torch.where(root > 0, (b - root.clamp(min=0).sqrt()) / a, 6.0)
    assert (root > 0).float().mean() > 0.1
    torch.testing.assert_close(depth, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "solid",
    [
        Solid(Shape.BOX, (0.1, 0.2, 4.0), (0.8, 0.5, 0.3), MATT, yaw=0.7, tilt=0.4),
        Solid(Shape.ELLIPSOID, (0.1, 0.2, 4.0), (0.8, 0.5, 0.3), MATT, yaw=0.7),
        Solid(Shape.FRUSTUM, (0.1, 0.2, 4.0), (0.6, 0.8, 0.6), MATT, tilt=0.5),
        Solid(Shape.FRUSTUM, (0.1, 0.2, 4.0), (0.7, 0.8, 0.7), MATT, taper=0.0),
        Solid(Shape.FRUSTUM, (0.1, 0.2, 4.0), (0.7, 0.5, 0.7), MATT, taper=0.5, yaw=1.0, tilt=-0.8),
    ],
    ids=["box", "ellipsoid", "cylinder", "cone", "frustum"],
)
@pytest.mark.parametrize("position", [(0.0, 0.0, 0.0), (1.0, -3.0, 2.0), (-1.5, 2.5, 4.5)])
def test_hits_lie_on_the_surface_that_faces_the_camera(solid, position):
    cameras = camera_from(position, solid.centre)
    depth = SceneRenderer(scene_of(solid), dtype=torch.float64).render(cameras).depth
    to_unit = torch.linalg.inv(unit_to_world([solid], torch.zeros(1, dtype=torch.float64)))[0, 0]
    hits = depth[0] < 15
    assert hits.sum() > 300

    def level(scale: float) -> torch.Tensor:
        """1 on the surface, less inside, more outside; at the hits moved along their rays."""
        unit = hit_points(cameras, depth * scale)[0][hits] @ to_unit[:3, :3].T + to_unit[:3, 3]
        width = (1 + solid.taper) / 2 + (1 - solid.taper) / 2 * unit[:, 1]
        return {
            Shape.BOX: unit.abs().amax(-1),
            Shape.ELLIPSOID: unit.norm(dim=-1),
            Shape.FRUSTUM: torch.maximum(unit[:, 1].abs(), 1 + unit[:, ::2].norm(dim=-1) - width),
        }[solid.shape]

    torch.testing.assert_close(level(1.0), torch.ones_like(level(1.0)), atol=1e-5, rtol=0)
    assert (level(1 - 1e-3) > 1).all()
    assert (level(1 + 1e-3) < 1).float().mean() > 0.97


@pytest.mark.slow
def test_frames_agree_through_their_depth(bank):
    scene = make_scene(0, 3, bank)
    cameras = path_of(scene, 1)[torch.tensor([0, 8])]
    frames = SceneRenderer(scene).render(cameras, supersampling=4)
    points = hit_points(cameras, frames.depth)[1].flatten(0, 1)
    pixels, depth = project(points[None], cameras[:1])
    grid = (pixels / torch.tensor([SIZE.width, SIZE.height]) * 2 - 1)[:, None]

    def sampled(image, mode):
        return functional.grid_sample(image, grid, mode=mode, align_corners=False)[0, :, 0]

    seen_depth = sampled(frames.depth[:1, None], "nearest")[0]
    visible = (grid[0, 0].abs() < 0.98).all(-1) & ((seen_depth - depth[0]).abs() < 0.02 * depth[0])
    colours = sampled(frames.rgb[:1].float() / 255, "bilinear")
    difference = (colours - frames.rgb[1].float().flatten(1) / 255).abs().mean(0)
    unaligned = (frames.rgb[0].float() - frames.rgb[1].float()).abs().mean() / 255
    assert visible.float().mean() > 0.6
    assert difference[visible].mean() < 0.02
    assert difference[visible].mean() < 0.4 * unaligned


def test_the_finest_texture_does_not_alias():
    noise = Material((0,), tiles_per_unit=3.0)
    floor = Solid(Shape.BOX, (0.0, 1.1, 0.0), (15.0, 0.1, 15.0), noise)
    ball = Solid(Shape.ELLIPSOID, (0.0, 0.0, 4.0), (0.8, 0.8, 0.8), noise)
    renderer = SceneRenderer(scene_of(floor, ball))
    cameras = camera_from((0.0, 0.0, 0.0), (0.0, 0.3, 4.0))
    coarse, fine = (renderer.render(cameras, count).rgb.float() / 255 for count in (2, 8))
    assert -10 * math.log10((coarse - fine).square().mean()) > LEAST_AGREEMENT_DB


def test_float32_agrees_with_float64(bank):
    scene = make_scene(0, 4, bank)
    cameras = path_of(scene, 0)[8:]
    single, double = (
        SceneRenderer(scene, dtype=kind).render(cameras) for kind in (torch.float32, torch.float64)
    )
    error = (single.depth - double.depth).abs() / double.depth
    assert error.median() < 1e-6
    assert (error > 1e-4).float().mean() < 2e-3
    different = (single.rgb.int() - double.rgb.int()).abs() > 2
    assert different.float().mean() < 2e-3


def test_chunks_and_bands_do_not_show(bank, monkeypatch):
    from lyra_ns.synthetic import render

    scene = make_scene(0, 2, bank)
    cameras = path_of(scene, 2)[:5]
    whole = SceneRenderer(scene).render(cameras)
    monkeypatch.setitem(render.WORK_SIZES, "cpu", render.WorkSize(1 << 16, 1 << 12))
    parts = SceneRenderer(scene).render(cameras)
    assert (parts.depth - whole.depth).abs().max() < 1e-4
    assert (parts.rgb.int() - whole.rgb.int()).abs().float().mean() < 0.01


def test_no_solid_comes_near_a_camera(bank):
    for index in range(12):
        scene = make_scene(1, index, bank, dynamic=index % 3 == 0)
        to_world = unit_to_world(scene.solids, torch.linspace(0, 1, 9, dtype=torch.float64))
        reach = camera_reach(scene.centre_depth)
        homogeneous = functional.pad(reach.double(), (0, 1), value=1.0)
        unit = (torch.linalg.inv(to_world)[:, :, None] @ homogeneous[..., None])[..., :3, 0]
        half = torch.tensor([solid.half_extents for solid in scene.solids], dtype=torch.float64)[:, None]
        encloses = torch.tensor([solid.encloses for solid in scene.solids])
        gap = ((unit.abs() - 1).clamp(min=0) * half).norm(dim=-1)
        assert gap[:, ~encloses].min() > HEADROOM - 1e-6
        margin = ((1 - unit.abs()) * half).amin(-1)
        assert margin[:, encloses].min() > HEADROOM - 1e-6


@pytest.mark.slow
def test_depth_fits_the_decoder_range(bank):
    for index in range(4):
        scene = make_scene(0, index, bank)
        for number in (3, 4):
            depth = SceneRenderer(scene).render(path_of(scene, number, INSIDE)[-1:], 1).depth
            assert depth.min() > 1.0
            assert depth.max() < 25.0


def test_scenes_follow_from_seed_and_number(bank):
    first, again, other = make_scene(0, 7, bank), make_scene(0, 7, bank), make_scene(0, 8, bank)
    assert first.solids == again.solids
    assert torch.equal(first.textures, again.textures)
    assert first.solids != other.solids
    assert first.name == "scene_000007"
    shapes = {solid.shape for index in range(6) for solid in make_scene(0, index, bank).solids}
    assert shapes == set(Shape)


def test_each_scene_has_a_focal_length_of_its_own_within_the_range():
    size = ClipSize(num_frames=9, focal_lengths=(0.5, 2.0))
    shares = [float(size.intrinsics(0, f"scene_{k}")[0]) / size.width for k in range(200)]
    assert 0.5 <= min(shares) < 0.55
    assert 1.8 < max(shares) <= 2.0
    assert 80 < sum(share < 1 for share in shares) < 120
    assert size.intrinsics(0, "scene_3").equal(size.intrinsics(0, "scene_3"))
    paths = scene_cameras(0, "scene_3", 4.0, size)
    assert all((path.intrinsics == size.intrinsics(0, "scene_3")).all() for path in paths.values())
    assert float(ClipSize().intrinsics(0, "scene_3")[0]) == pytest.approx(0.9 * 256)
    with pytest.raises(ValueError, match="focal length"):
        ClipSize(focal_lengths=(1.0, 0.5))


def test_held_out_scenes_see_only_held_out_pictures(bank):
    for held_out in (False, True):
        palette = ScenePalette(Draws(generator_for(1)), bank, held_out)
        for _ in range(40):
            palette.surface(), palette.quiet(), palette.picture(), palette.wide()
        sources = {recipe.source for recipe in palette._recipes}
        assert len(sources) > 20
        assert all(bank.is_held_out[source] == held_out for source in sources)


def test_things_move_only_in_dynamic_scenes(bank):
    for dynamic in (False, True):
        scene = make_scene(0, 5, bank, dynamic=dynamic)
        start = path_of(scene, 0, INSIDE)[:1]
        later = replace(start, times=torch.ones(1))
        renderer = SceneRenderer(scene)
        assert torch.equal(renderer.render(start).rgb, renderer.render(later).rgb) != dynamic


def test_texture_atlas_comes_back(bank, atlas, tmp_path):
    loaded = load_texture_atlas(atlas)
    assert torch.equal(loaded.images, bank.images)
    assert torch.equal(loaded.is_held_out, bank.is_held_out)
    with pytest.raises(FileNotFoundError, match="save_texture_atlas"):
        load_texture_atlas(tmp_path / "none.safetensors")


@pytest.mark.slow
def test_a_folder_of_pictures_makes_a_bank(tmp_path):
    from PIL import Image

    with pytest.raises(FileNotFoundError, match="at least 4 photographs"):
        textures_from_folder(tmp_path)
    for number in range(14):
        Image.new("RGB", (40, 30), (number, 0, 0)).save(tmp_path / f"{number:02d}.png")
    made = textures_from_folder(tmp_path)
    photographs = made.images[made.indices(held_out=True, photographs=True)]
    assert photographs[:, 0].unique().tolist() == [10, 11, 12, 13]


@pytest.mark.slow
def test_a_pack_makes_a_bank_whose_held_out_files_are_their_own(tmp_path):
    path = small_packs.small_pack(tmp_path / "pack.zip")
    pack = Pack(path)
    made = load_textures(path)
    assert made.images[made.is_photograph].shape == (2 * 40 + 40, 3, 256, 256)
    held_out = made.images[made.indices(held_out=True, photographs=True)]
    assert 4 <= len(held_out) < 0.25 * 120
    training = made.images[made.indices(held_out=False, photographs=True)]
    distance = (held_out[:, None].float() - training[None].float()).abs().mean((2, 3, 4))
    assert distance.min() > 8, "no square of a file is in both splits"
    # Views of one file stay together even where each looks like another picture.
    sources = {
        name: replace(pack.source(name), file_sha256="00" * 32) for name in pack.names("textures")[:20]
    }
    others = {name: pack.source(name) for name in pack.names("textures")[20:]}
    pictures = {name: pack.read_file(name) for name in sources | others}
    write_pack(tmp_path / "views.zip", pictures, sources | others)
    views = textures_from_pack(Pack(tmp_path / "views.zip"))
    assert len(views.indices(held_out=True, photographs=True)) >= 20


def test_other_files_of_textures_end_in_a_sentence(tmp_path):
    with pytest.raises(ValueError, match="at least 4 held-out pictures"):
        load_textures(small_packs.small_pack(tmp_path / "tiny.zip", 3, 3))
    with pytest.raises(
        ValueError, match=r"expected a pack of pictures \(\.zip\), a folder or a texture atlas"
    ):
        load_textures(tmp_path / "pictures.tar")
    folder = tmp_path / "folder"
    folder.mkdir()
    for number in range(14):
        (folder / f"{number}.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="take it out of the folder"):
        load_textures(folder)


@pytest.mark.slow
def test_scenes_are_papered_from_a_pack_by_any_number_of_workers(tmp_path):
    pack = small_packs.small_pack(tmp_path / "pack.zip")
    settings = {"textures": pack, "num_held_out": 1, "height": 32, "width": 48, "num_frames": 9}
    for folder, workers in (("one", 1), ("two", 2)):
        write_sample_data(tmp_path / folder, 1, num_workers=workers, **settings)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    save_texture_atlas(tmp_path / "atlas.safetensors", load_textures(pack))
    write_sample_data(
        tmp_path / "atlas", 1, num_workers=1, **settings | {"textures": tmp_path / "atlas.safetensors"}
    )
    assert contents(tmp_path / "atlas") == contents(tmp_path / "one")
    with pytest.raises(ValueError, match="written with other textures"):
        write_sample_data(tmp_path / "one", 2, num_workers=1, **settings | {"textures": None})


def contents(root: Path) -> dict[str, bytes]:
    return {str(file.relative_to(root)): file.read_bytes() for file in root.rglob("*") if file.is_file()}


@pytest.mark.slow
def test_written_data_is_readable_resumable_and_the_same_for_any_number_of_workers(tmp_path, atlas):
    settings = {"textures": atlas, "num_held_out": 1, "height": 32, "width": 48, "num_frames": 9}
    write_sample_data(tmp_path / "one", 1, num_workers=1, **settings)
    store = LyraStore(tmp_path / "one")
    assert store.manifest.splits == {"train": ["scene_000000"], "test": ["scene_900000"]}
    assert store.listing == {"scene_000000": list(range(6)), "scene_900000": list(range(6))}
    clip = store.scene("scene_900000").clips[4]
    assert clip.rgb().shape == (9, 3, 32, 48)
    assert clip.latents().shape == (16, 2, 4, 6)
    assert clip.depth().min() > 1
    torch.testing.assert_close(clip.cameras().camera_to_world[0], torch.eye(4))
    novel = store.novel_clips("scene_900000")
    assert list(novel) == [0, 1]
    assert not novel[0].has("latent")
    assert novel[1].rgb().shape == clip.rgb().shape

    before = contents(tmp_path / "one")
    stamps = {file: file.stat().st_mtime_ns for file in (tmp_path / "one").rglob("*scene_000000*")}
    write_sample_data(tmp_path / "one", 2, num_workers=1, **settings)
    assert all(file.stat().st_mtime_ns == stamp for file, stamp in stamps.items())
    after = contents(tmp_path / "one")
    assert len([name for name in after if "scene_000001" in name]) == 6 * 5 + 2 * 4
    assert all(after[name] == content for name, content in before.items() if name != "manifest.json")

    write_sample_data(tmp_path / "two", 2, num_workers=2, **settings)
    assert contents(tmp_path / "two") == after

    with pytest.raises(ValueError, match="seed = 0, now 5"):
        write_sample_data(tmp_path / "one", 2, seed=5, num_workers=1, **settings)

    manifest = read_manifest(tmp_path / "one")
    assert manifest.codec_digest == load_codec("linear").spec.digest
    write_manifest(tmp_path / "one", replace(manifest, codec_digest="0123456789abcdef"))
    with pytest.raises(ValueError, match="codec_digest = 0123456789abcdef, now"):
        write_sample_data(tmp_path / "one", 3, num_workers=1, **settings)


@pytest.mark.slow
def test_dynamic_data_runs_forward_in_time(tmp_path, bank, atlas):
    settings = {"height": 32, "width": 48, "num_frames": 9, "textures": atlas}
    write_sample_data(tmp_path, 1, dynamic=True, num_workers=1, **settings)
    store = LyraStore(tmp_path)
    assert store.is_dynamic
    assert store.manifest.flipped_pose_order == "as_is"
    write_manifest(tmp_path, replace(store.manifest, flipped_pose_order="auto", focal_lengths=None))
    write_sample_data(tmp_path, 1, dynamic=True, num_workers=1, **settings)
    assert read_manifest(tmp_path) == store.manifest, "manifests of earlier versions are completed"
    scene = store.scene("dynamic_000000")
    assert list(scene.clips) == list(range(12))
    for number, clip in scene.clips.items():
        poses = clip.cameras().camera_to_world
        torch.testing.assert_close(poses[0 if number < 6 else -1], torch.eye(4))
    moving = make_scene(0, 0, bank, dynamic=True)
    last = SceneRenderer(moving).render(replace(path_of(moving, 0, INSIDE)[:1], times=torch.ones(1)))
    stored = scene.clips[7].depth()[-1]
    torch.testing.assert_close(stored, last.depth[0], rtol=2e-3, atol=0)
    assert (stored - scene.clips[0].depth()[0]).abs().max() > 0.1


def test_sizes_that_the_codec_cannot_take_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="8k \\+ 1"):
        write_sample_data(tmp_path / "data", 1, num_frames=10)
    assert not (tmp_path / "data").exists()
