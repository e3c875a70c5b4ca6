"""Training of the learned codec on a tiny pack: it learns, resumes, is judged, and refuses what is broken."""

from __future__ import annotations

import io
import json
import shutil
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from lyra_ns.codec import load_codec
from training.codec import evaluate, export, train
from training.codec.clips import ClipShape, Draws, draw_motion, moving_pictures, moving_rays
from training.codec.pictures import ZipPack, load_pictures, sample_pixels
from training.codec.state import read_state

CPU = torch.device("cpu")
REPEATED = ClipShape(2, 9, 32, 48)


def drawn_picture(seed: int, width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Smooth waves with a few hard edges."""
    draws = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / 32
    waves = [
        np.sin(x * draws.uniform(0.5, 4) + y * draws.uniform(0.5, 4) + draws.uniform(0, 6)) for _ in range(3)
    ]
    pixels = np.stack(waves, -1) * 100 + 128
    pixels[height // 3 : height // 2, width // 4 : width // 2] = draws.uniform(0, 255, 3)
    picture = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    if mode == "RGBA":
        picture.putalpha(Image.fromarray((255 * ((x - 1) ** 2 + (y - 1) ** 2 < 1)).astype(np.uint8)))
    return picture


@pytest.fixture(scope="module")
def pack_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("pack") / "pack.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(4):
            write_picture(archive, f"photographs/{number}.jpg", drawn_picture(number, 160, 120), "JPEG")
        write_picture(archive, "photographs/tall.jpg", drawn_picture(9, 90, 170), "JPEG")
        write_picture(archive, "textures/0.jpg", drawn_picture(5, 64, 64), "JPEG")
        write_picture(archive, "cutouts/0.webp", drawn_picture(6, 48, 64, "RGBA"), "WEBP")
    return path


def write_picture(archive: zipfile.ZipFile, name: str, picture: Image.Image, kind: str) -> None:
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    archive.writestr(name, buffer.getvalue())


@pytest.fixture(scope="module")
def pictures(pack_file):
    return load_pictures(ZipPack(pack_file), CPU, 160, 64)


@pytest.fixture(scope="module")
def held_out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("held_out")
    drawn_picture(77, 300, 200).save(folder / "one.png")
    return folder


def settings(output, **changes) -> train.TrainSettings:
    values = {
        "seconds": 300.0,
        "total_seconds": 1e6,
        "config": "tiny",
        "num_clips": 2,
        "photograph_side": 160,
        "layer_side": 64,
        "small": True,
        "learning_rate": 2e-3,
    }
    return train.TrainSettings(output=output, **(values | changes))


@pytest.fixture
def same_clips(monkeypatch):
    """Every step sees the same two clips, which a tiny network soon knows by heart."""
    monkeypatch.setattr(train, "batch_shapes", lambda *_: (REPEATED,))
    monkeypatch.setattr(train, "Draws", lambda _, device: Draws(4, device))
    monkeypatch.setattr(train, "WARM_UP_STEPS", 10)
    monkeypatch.setattr(train, "RESTART_STEPS", 1)


def test_points_take_the_pixels_they_name():
    canvas = torch.rand(1, 3, 8, 8)
    size = torch.tensor([[8.0, 6.0]])
    rows, columns = torch.meshgrid(torch.arange(6.0), torch.arange(8.0), indexing="ij")
    points = torch.stack([columns, rows], -1)[None, None] + 0.5
    taken = sample_pixels(canvas, size, points, "mirror")
    torch.testing.assert_close(taken[:, :, 0], canvas[:, :, :6])
    mirrored = sample_pixels(
        canvas, size, points * torch.tensor([-1.0, 1.0]) + torch.tensor([0.0, 12.0]), "mirror"
    )
    torch.testing.assert_close(mirrored[:, :, 0], canvas[:, :, :6], atol=1e-5, rtol=1e-5)
    assert not sample_pixels(canvas, size, points + 20, "nothing").any()


def test_pictures_keep_their_sizes_on_every_level(pictures):
    assert pictures.photographs.sizes[0].tolist()[0] == [160, 120]
    assert pictures.photographs.sizes[1].tolist()[-1] == [42, 80]
    canvas = pictures.photographs.levels[0][0]
    assert torch.equal(canvas[:, 130], canvas[:, 119])
    assert not pictures.cutouts.levels[0][0, :, :, 48:].any()


@pytest.mark.slow
def test_clips_are_colours_that_move_or_stand_still(pictures):
    video = moving_pictures(pictures, ClipShape(32, 9, 32, 48), Draws(0, CPU))
    assert video.shape == (32, 3, 9, 32, 48)
    assert video.min() >= -1
    assert video.max() <= 1
    changes = (video[:, :, 1:] - video[:, :, :-1]).abs().amax((1, 2, 3, 4))
    assert 1 <= (changes == 0).sum() < 12
    assert torch.equal(video, moving_pictures(pictures, ClipShape(32, 9, 32, 48), Draws(0, CPU)))


def test_motions_reach_what_the_judgement_asks_and_begin_at_rest():
    shape = ClipShape(400, 17, 160, 256)
    motion = draw_motion(shape, Draws(0, CPU), torch.zeros(400, dtype=torch.bool))
    assert not motion.shift[:, 0].any()
    a_frame = motion.shift[:, -1].norm(dim=-1) / 16
    assert a_frame.min() < 0.5
    assert a_frame.max() > 5
    assert motion.growth[:, -1].log().abs().max() > 16 * 0.012


def test_ray_maps_are_unit_directions_and_their_moments():
    rays = moving_rays(ClipShape(6, 9, 32, 48), Draws(0, CPU))
    moments, directions = rays.chunk(2)
    torch.testing.assert_close(directions.norm(dim=1), torch.ones(3, 9, 32, 48))
    torch.testing.assert_close((moments * directions).sum(1), torch.zeros(3, 9, 32, 48), atol=1e-5, rtol=0)
    assert not moments[:, :, 0].any()


def test_every_batch_shape_can_be_coded():
    for is_small in (False, True):
        for shape in train.batch_shapes(16, is_small):
            assert shape.height % 16 == shape.width % 16 == 0
            assert shape.num_frames % 8 == 1
    sizes = {(shape.height, shape.width) for shape in train.batch_shapes(16)}
    assert sizes == {(160, 256), (256, 160), (208, 208), (320, 512)}


@pytest.mark.slow
def test_training_lowers_the_loss_and_writes_everything(tmp_path, pack_file, held_out, same_clips):
    output = tmp_path / "run"
    trainer = train.train(settings(output, max_steps=70), ZipPack(pack_file), CPU)
    untrained = train.LearnedNetwork(trainer.network.config)
    untrained.start_from(train.load_linear_codec())
    before, after, averaged = (
        loss_of(network, trainer) for network in (untrained, trainer.network, trainer.average)
    )
    assert after < 0.85 * before
    assert averaged < 0.95 * before
    result = train.finish(trainer, str(held_out))
    assert json.loads((output / "evaluation.json").read_text())["digest"] == result["digest"]
    assert set(result["256x160"]["pictures"]) == {"one"}
    lines = [json.loads(line) for line in (output / "curve.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 70
    codec = load_codec(f"learned:{output / 'learned_codec.safetensors'}")
    assert codec.spec.digest == result["digest"] == export.export_codec(output).digest
    latents = codec.to_diffusion(codec.encode(repeated_clips(trainer)))
    assert abs(latents.std() - 0.5) < 0.05
    assert latents.mean().abs() < 0.05


def repeated_clips(trainer) -> torch.Tensor:
    return trainer.clips(REPEATED, Draws(4, CPU), with_rays=False)


@torch.no_grad()
def loss_of(network, trainer) -> float:
    video = repeated_clips(trainer)
    mean, log_variance = network.encode(video)
    return float(train.judge(network.decode(mean), video, mean, log_variance).loss)


@pytest.mark.slow
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path, pack_file, same_clips):
    pack = ZipPack(pack_file)
    whole = train.train(settings(tmp_path / "whole", max_steps=60), pack, CPU)
    first = train.train(settings(tmp_path / "first", max_steps=30), pack, CPU)
    half_way = loss_of(first.network, first)
    resumed = train.train(settings(tmp_path / "second", max_steps=30, resume=tmp_path / "first"), pack, CPU)
    assert resumed.progress.step == whole.progress.step == 60
    assert resumed.progress.seconds > first.progress.seconds
    end, end_resumed = loss_of(whole.network, whole), loss_of(resumed.network, resumed)
    assert end < 0.9 * half_way
    assert abs(end_resumed - end) < 0.3 * (half_way - end)
    curve = (tmp_path / "second" / "curve.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in curve][-1] == 60
    assert 30 in [json.loads(line)["step"] for line in curve]


@pytest.fixture(scope="module")
def state(tmp_path_factory, pack_file):
    folder = tmp_path_factory.mktemp("state")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "batch_shapes", lambda *_: (ClipShape(2, 9, 32, 48),))
        train.train(settings(folder, max_steps=3), ZipPack(pack_file), CPU)
    return folder


@pytest.mark.slow
def test_the_state_restores_weights_averages_and_second_moments(state, pictures):
    saved = read_state(state)
    trainer = train.Trainer(settings(state, resume=state), pictures, CPU)
    for network, kind in ((trainer.network, "network"), (trainer.average, "average")):
        for key, tensor in saved.weights(kind).items():
            assert torch.equal(network.state_dict()[key], tensor)
    weight = trainer.network.decoder.patches.weight
    second = trainer.optimizer.state[weight]["exp_avg_sq"]
    torch.testing.assert_close(
        second.reshape(len(second), -1).mean(1), saved.tensors["rows.decoder.patches.weight"]
    )
    assert second.min() >= 0
    assert second.any()


@pytest.mark.slow
def test_the_full_state_fits_into_files_that_travel(tmp_path):
    network = train.LearnedNetwork(train.LearnedCodecConfig())
    optimizer = torch.optim.AdamW(network.parameters())
    statistics = train.LatentStatistics(torch.zeros(16, 2), torch.ones(16, 2), repeat_last=True)
    train.write_state(tmp_path, network, network, optimizer, statistics, train.Progress(7))
    sizes = [path.stat().st_size for path in tmp_path.iterdir()]
    assert max(sizes) <= 15 * 2**20
    assert sum(sizes) <= 60 * 2**20
    assert len(sizes) <= 6
    train.write_state(tmp_path, network, network, optimizer, statistics, train.Progress(8))
    assert {path.name.split("-")[1] for path in tmp_path.glob("*.part")} == {"0000008"}


def test_training_begins_with_the_weights_of_a_codec(tmp_path, state, pictures):
    codec = export.export_codec(state)
    path = tmp_path / "codec.safetensors"
    path.write_bytes(codec.to_bytes())
    trainer = train.Trainer(settings(tmp_path, start_from=path), pictures, CPU)
    assert trainer.progress.step == 0
    for key, tensor in read_state(state).weights("average").items():
        assert torch.equal(trainer.network.state_dict()[key], tensor)
        assert torch.equal(trainer.average.state_dict()[key], tensor)
    path.write_bytes(b"no codec")
    with pytest.raises(ValueError, match="is not a learned codec"):
        train.Trainer(settings(tmp_path, start_from=path), pictures, CPU)


@pytest.mark.parametrize("fault", ["cut", "changed", "missing", "manifest", "format"])
def test_a_state_that_is_not_whole_is_refused(tmp_path, state, fault):
    folder = tmp_path / "state"
    shutil.copytree(state, folder)
    part = next(folder.glob("*.part"))
    manifest = folder / "state.json"
    if fault == "cut":
        part.write_bytes(part.read_bytes()[:-5])
    elif fault == "changed":
        content = bytearray(part.read_bytes())
        content[-1] ^= 1
        part.write_bytes(content)
    elif fault == "missing":
        part.unlink()
    elif fault == "manifest":
        manifest.write_text("{")
    else:
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": "other"}))
    with pytest.raises(ValueError, match="copy the whole folder") as refusal:
        read_state(folder)
    assert "\n" not in str(refusal.value)


def test_missing_inputs_are_said_in_one_sentence(tmp_path, pack_file):
    with pytest.raises(FileNotFoundError, match=r"holds no state\.json"):
        read_state(tmp_path)
    (tmp_path / "text.zip").write_text("no zip")
    with pytest.raises(ValueError, match="no zip of training pictures"):
        ZipPack(tmp_path / "text.zip")
    with zipfile.ZipFile(tmp_path / "half.zip", "w") as archive:
        write_picture(archive, "photographs/0.jpg", drawn_picture(0, 64, 64), "JPEG")
    with pytest.raises(ValueError, match="holds no textures"):
        load_pictures(ZipPack(tmp_path / "half.zip"), CPU, 64, 64)
    with zipfile.ZipFile(tmp_path / "broken.zip", "w") as archive:
        archive.writestr("photographs/0.jpg", b"no picture")
    with pytest.raises(ValueError, match=r"photographs/0\.jpg of the pack is no picture"):
        load_pictures(ZipPack(tmp_path / "broken.zip"), CPU, 64, 64)
    with pytest.raises(ValueError, match="held-out photographs must be"):
        evaluate.read_held_out(str(tmp_path / "none"))


@pytest.mark.slow
def test_a_loss_that_is_no_number_stops_before_the_state_is_touched(tmp_path, state, pack_file, same_clips):
    folder = tmp_path / "state"
    shutil.copytree(state, folder)
    before = (folder / "state.json").read_text()
    wild = settings(folder, resume=folder, max_steps=12, learning_rate=1e30)
    with pytest.raises(FloatingPointError, match="lower --learning-rate"):
        train.train(wild, ZipPack(pack_file), CPU)
    assert (folder / "state.json").read_text() == before


def test_the_held_out_clip_is_the_photograph_zooming_in_and_panning():
    picture = drawn_picture(3, 640, 427)
    video = evaluate.moving_window(picture, 160, 256)
    assert video.shape == (1, 3, 17, 160, 256)
    assert (video[:, :, 1] - video[:, :, 0]).abs().max() > 0.05
    whole = picture.crop((0, 13, 640, 413)).resize((256, 160), Image.Resampling.LANCZOS)
    expected = torch.from_numpy(np.array(whole)).permute(2, 0, 1) / 127.5 - 1
    torch.testing.assert_close(video[0, :, 0], expected.float())


def test_photographs_are_read_from_folder_zip_and_npz(tmp_path, held_out):
    content = (held_out / "one.png").read_bytes()
    np.savez(tmp_path / "held.npz", one=np.frombuffer(content, np.uint8))
    with zipfile.ZipFile(tmp_path / "held.zip", "w") as archive:
        archive.writestr("in/one.png", content)
    for place in (held_out, tmp_path / "held.npz", tmp_path / "held.zip"):
        (picture,) = evaluate.read_held_out(str(place)).values()
        assert picture.size == (300, 200)
