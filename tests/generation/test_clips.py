"""Clips of `ns-lyra generate` survive what ends a run, and only the same settings go on with them."""

from __future__ import annotations

import errno
import gc
import io
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from lyra_ns.cache3d.cache import SceneCache
from lyra_ns.codec import load_codec
from lyra_ns.decoder.checkpoints import save_decoder
from lyra_ns.decoder.config import DecoderConfig
from lyra_ns.decoder.model import LatentGaussianDecoder
from lyra_ns.gaussians import GaussianHeadConfig
from lyra_ns.gen3c.pipeline import Gen3CPipeline, gen3c_scheduler
from lyra_ns.generation import clips, reading
from lyra_ns.generation import run as run_module
from lyra_ns.generation.clips import check_num_gpus
from lyra_ns.generation.folder import check_output, mend_output
from lyra_ns.generation.run import generate
from lyra_ns.generation.settings import GenerateSettings
from lyra_ns.teachers.warp import WarpTeacher
from tests.helpers.small_gen3c import small_autoencoder, small_transformer

NOT_COMPARED = ("record.json", "video.mp4")
OPTIONS = {"height": 64, "width": 96, "num_frames": 9, "units": 4.0, "num_trajectories": 3, "device": "cpu"}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    torch.manual_seed(0)
    head = GaussianHeadConfig(near=1.0, far=30.0, distance_law="logarithmic", scale_law="footprint")
    sizes = {"width": 32, "depth": 2, "pattern": "1M1T", "num_heads": 2, "state_size": 8, "head_dim": 16}
    for name, config in (("small", DecoderConfig(**sizes, head=head)), ("lyra", DecoderConfig(**sizes))):
        decoder = LatentGaussianDecoder(config)
        decoder.codec_digest = load_codec("linear").spec.digest if name == "small" else ""
        save_decoder(decoder, folder / f"{name}.safetensors")
    pipeline = Gen3CPipeline(small_transformer(), small_autoencoder(), gen3c_scheduler())
    pipeline.save_pretrained(folder / "weights")
    noise = np.random.default_rng(0).integers(0, 255, (8, 12, 3), "uint8")
    Image.fromarray(noise).resize((96, 64), Image.Resampling.BICUBIC).save(folder / "photo.png")
    depth = np.full((64, 96), 5.0, np.float32)
    depth[16:48, 32:64] = 2.5
    np.save(folder / "depth.npy", depth)
    return folder


def run(files: Path, output: Path, **changes) -> str:
    printed = io.StringIO()
    chosen = {
        "input": files / "photo.png", "checkpoint": str(files / "small.safetensors"),
        "depth": str(files / "depth.npy"), "refine_steps": 0, **OPTIONS,
    }  # fmt: skip
    generate(GenerateSettings(output=output, **(chosen | changes)), Console(file=printed, soft_wrap=True))
    return printed.getvalue()


def content(output: Path) -> dict[str, bytes]:
    """All files but the record, which has seconds in it, and the video, whose encoder uses threads."""
    paths = [path for path in output.rglob("*") if path.is_file() and path.name not in NOT_COMPARED]
    return {path.relative_to(output).as_posix(): path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def whole(files: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A result that was never interrupted."""
    output = tmp_path_factory.mktemp("whole") / "scene"
    run(files, output)
    assert {path.name for path in output.parent.iterdir()} == {"scene"}
    assert not (output / "unfinished").exists()
    return content(output)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The trajectories whose clips the warp makes in this process."""
    numbers: list[int] = []
    clip = WarpTeacher._clip

    def counted(self, request):
        numbers.append(request.trajectory)
        return clip(self, request)

    monkeypatch.setattr(WarpTeacher, "_clip", counted)
    return numbers


def interrupted(files: Path, output: Path, monkeypatch: pytest.MonkeyPatch, **changes) -> str:
    """What is printed by a run whose pictures fail."""
    printed = io.StringIO()

    def fail(*arguments, **options):
        raise RuntimeError("no pictures today")

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "write_video", fail)
        patch.setattr(run_module, "StageProgress", _progress_into(printed))
        with pytest.raises(RuntimeError, match="no pictures today"):
            run(files, output, **changes)
    return printed.getvalue()


def _progress_into(printed: io.StringIO):
    made = run_module.StageProgress
    return lambda stages, device, console: made(stages, device, Console(file=printed, soft_wrap=True))


@pytest.mark.slow
def test_clips_survive_an_error_in_a_later_stage(files, whole, tmp_path, monkeypatch, made):
    output = tmp_path / "scene"
    printed = interrupted(files, output, monkeypatch)
    assert f"{output / 'unfinished'} keeps the clips that are made (3): the same command goes on" in printed
    assert {path.name for path in output.iterdir()} == {"unfinished"}
    assert {path.name for path in tmp_path.iterdir()} == {"scene"}
    assert made == [5, 0, 1]
    printed = run(files, output, prune_ratio=0.5, memory="fast")
    assert made == [5, 0, 1], "clips were made again"
    assert "3 of 3 clips were made by an earlier run" in printed
    assert content(output) == whole


@pytest.mark.slow
def test_a_killed_run_goes_on_with_the_clips_that_are_there(files, whole, tmp_path, made):
    """SIGKILL while clips are made: not a byte of the result differs, and not all are made again."""
    output = tmp_path / "scene"
    words = [f"--{name.replace('_', '-')}={value}" for name, value in OPTIONS.items()]
    command = [
        *(sys.executable, "-c", SLOW_COMMAND, "generate", str(files / "photo.png"), "-o", str(output)),
        *("--checkpoint", str(files / "small.safetensors"), "--depth", str(files / "depth.npy"), *words),
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 200
        while process.poll() is None and time.monotonic() < end:
            if len(list(output.glob("unfinished/*.safetensors"))) == 2:
                break
            time.sleep(0.02)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == -signal.SIGKILL, "the run ended before it could be killed"
    assert not (output / "scene.ply").exists()
    (output / "unfinished" / ".1.safetensors.123.ab.partial").write_bytes(b"half")
    run(files, output)
    assert made == [1]
    assert content(output) == whole


SLOW_COMMAND = """
import time
from lyra_ns.cli import main as cli
from lyra_ns.teachers.warp import WarpTeacher
clip = WarpTeacher._clip
def slow(self, request):
    time.sleep(1000 if request.trajectory == 1 else 0)
    return clip(self, request)
WarpTeacher._clip = slow
cli.main()
"""


@pytest.mark.slow
def test_other_settings_are_refused_unless_all_is_made_anew(
    files, whole, tmp_path, monkeypatch, made, caplog
):
    output = tmp_path / "scene"
    interrupted(files, output, monkeypatch, seed=7)
    before = content(output)
    with pytest.raises(ValueError, match=r"made otherwise \(--seed was 7, now 0; .*--overwrite"):
        run(files, output)
    assert content(output) == before
    made.clear()
    run(files, output, overwrite=True)
    assert made == [5, 0, 1]
    assert caplog.text.count("was made otherwise") == 3, "every clip is named once"
    assert content(output) == whole


@pytest.mark.slow
def test_another_picture_depth_path_or_weights_are_noticed(files, tmp_path, monkeypatch):
    own = shutil.copytree(files, tmp_path / "files")
    output = tmp_path / "scene"
    chosen = {"weights": str(own / "weights"), "checkpoint": str(own / "lyra.safetensors"), "steps": 1}
    chosen |= {"precision": "float32", "num_trajectories": 1}
    interrupted(own, output, monkeypatch, **chosen)
    changes = {
        "photo.png": (lambda path: Image.new("RGB", (96, 64)).save(path), "picture was"),
        "depth.npy": (lambda path: np.save(path, np.full((64, 96), 4.0, np.float32)), "depth file was"),
        "weights/transformer/config.json": (
            lambda path: path.write_text(path.read_text() + " "),
            "--weights",
        ),
    }
    for name, (change, message) in changes.items():
        kept = (own / name).read_bytes()
        change(own / name)
        with pytest.raises(ValueError, match=f"made otherwise .*{message}"):
            run(own, output, **chosen)
        (own / name).write_bytes(kept)
    with pytest.raises(ValueError, match=r"made otherwise \(path 5 is another one\)"):
        _with_longer_paths(own, output, monkeypatch, **chosen)
    # The same clips, under more paths, and in a folder of weights that was moved.
    (own / "weights").rename(own / "moved")
    printed = run(own, output, **(chosen | {"weights": str(own / "moved"), "num_trajectories": 2}))
    assert "1 of 2 clips were made by an earlier run" in printed


def _with_longer_paths(files, output, monkeypatch, **chosen):
    from lyra_ns.generation import plan as plan_module

    six = plan_module.lyra_six
    with monkeypatch.context() as patch:
        patch.setattr(
            plan_module, "lyra_six",
            lambda *words, distance_factor, **named: six(*words, distance_factor=1.01, **named),
        )  # fmt: skip
        run(files, output, **chosen)


@pytest.mark.slow
def test_estimated_depth_may_differ_by_rounding_and_no_more(files, tmp_path, monkeypatch):
    output = tmp_path / "scene"
    interrupted(files, output, monkeypatch, depth="plane")
    plan_scene = run_module.plan_scene

    def with_depth_times(factor: float):
        def plan(*arguments, **named):
            made = plan_scene(*arguments, **named)
            object.__setattr__(made, "depth", made.depth * factor)
            return made

        monkeypatch.setattr(run_module, "plan_scene", plan)

    with_depth_times(1.01)
    with pytest.raises(ValueError, match=r"made otherwise \(the depth is another one\)"):
        run(files, output, depth="plane")
    with_depth_times(1 + 1e-6)
    assert "3 of 3 clips were made" in run(files, output, depth="plane")


@pytest.mark.slow
def test_a_damaged_clip_is_made_anew(files, whole, tmp_path, monkeypatch, made, caplog):
    output = tmp_path / "scene"
    interrupted(files, output, monkeypatch)
    damaged = output / "unfinished" / "0.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:1000])
    made.clear()
    run(files, output)
    assert made == [0]
    assert caplog.text.count("is damaged") == 1
    assert content(output) == whole


def test_a_damaged_picture_is_painted_again(tmp_path, caplog):
    path = tmp_path / "picture.png"
    rgb = torch.arange(64 * 64 * 3, dtype=torch.uint8).reshape(3, 64, 64)
    reading._keep_picture(path, "a prompt", rgb)
    assert torch.equal(reading._kept_picture(path, "a prompt"), rgb)
    assert reading._kept_picture(path, "another") is None
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"no picture"):
        path.write_bytes(damaged)
        assert reading._kept_picture(path, "a prompt") is None
        assert "is damaged" in caplog.text
        caplog.clear()


def test_no_folder_is_left_where_no_clip_could_be_kept(files, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(clips, "write_whole", full)
    with pytest.raises(OSError, match="No space left"):
        run(files, tmp_path / "scene", num_trajectories=1)
    assert not list(tmp_path.iterdir())


def test_another_text_encoder_is_noticed(tmp_path):
    (tmp_path / "t5").mkdir()
    (tmp_path / "t5" / "model.safetensors").write_bytes(b"one")
    before = clips._folder_digest(str(tmp_path / "t5"))
    (tmp_path / "t5").rename(tmp_path / "moved")
    assert clips._folder_digest(str(tmp_path / "moved")) == before
    (tmp_path / "moved" / "model.safetensors").write_bytes(b"two")
    assert clips._folder_digest(str(tmp_path / "moved")) != before


def test_runs_that_make_no_clips_do_not_lose_those_that_are_there(tmp_path):
    (tmp_path / "unfinished").mkdir()
    check_output(tmp_path, None, overwrite=False, is_dry_run=False)
    check_output(tmp_path, None, overwrite=True, is_dry_run=False, goes_on=False)
    with pytest.raises(FileExistsError, match="holds clips of an unfinished run"):
        check_output(tmp_path, None, overwrite=False, is_dry_run=False, goes_on=False)


def test_what_a_killed_run_left_beside_the_output_is_mended(tmp_path):
    """Killed while it wrote, between its two renames, or while it deleted what was replaced."""
    with subprocess.Popen(["true"]) as dead:
        pass
    output = tmp_path / "scene"
    partial, earlier = (tmp_path / f".scene.{dead.pid}.{what}" for what in ("partial", "earlier"))
    others = tmp_path / f".scene.{os.getppid()}.partial"
    for folder in (partial, earlier, others):
        folder.mkdir()
    (earlier / "scene.ply").write_text("earlier")
    mend_output(output)
    assert {path.name for path in tmp_path.iterdir()} == {"scene", others.name}
    assert (output / "scene.ply").read_text() == "earlier"
    earlier.mkdir()
    mend_output(output)
    assert not earlier.exists()
    assert (output / "scene.ply").exists()


def test_a_run_with_the_number_of_the_one_that_was_killed_mends_what_that_left(tmp_path):
    """Every container numbers its processes from 1."""
    earlier = tmp_path / f".scene.{os.getpid()}.earlier"
    earlier.mkdir()
    mend_output(tmp_path / "scene")
    assert [path.name for path in tmp_path.iterdir()] == ["scene"]


def test_a_preview_that_was_killed_does_not_lock_the_folder(tmp_path):
    with subprocess.Popen(["true"]) as dead:
        pass
    output = tmp_path / "scene"
    (output / f".preview.{dead.pid}.partial").mkdir(parents=True)
    (output / f".preview.{dead.pid}.earlier").mkdir()
    mend_output(output)
    assert [path.name for path in output.iterdir()] == ["preview"]
    check_output(output, None, overwrite=False, is_dry_run=False)


@pytest.mark.slow
def test_the_cache_is_gone_when_the_gaussians_are_made(files, tmp_path, monkeypatch):
    seen = []
    reconstructor = run_module.Reconstructor

    def counting(*arguments):
        gc.collect()
        seen.append(sum(isinstance(thing, SceneCache) for thing in gc.get_objects()))
        return reconstructor(*arguments)

    monkeypatch.setattr(run_module, "Reconstructor", counting)
    run(files, tmp_path / "scene", num_trajectories=1)
    assert seen == [0]


@pytest.mark.slow
def test_two_processes_make_the_same_files(files, tmp_path, made):
    """GEN3C on random weights, whose noise must not depend on who makes a clip."""
    chosen = {"weights": str(files / "weights"), "checkpoint": str(files / "lyra.safetensors"), "steps": 1}
    chosen |= {"precision": "float32", "depth": "plane", "num_trajectories": 2}
    run(files, tmp_path / "one", **chosen)
    printed = run(files, tmp_path / "two", num_gpus=2, **chosen)
    assert content(tmp_path / "two") == content(tmp_path / "one")
    assert "clips made by gen3c" in printed


@pytest.mark.slow
def test_after_a_failure_in_one_process_the_clips_of_all_are_kept(files, whole, tmp_path, made, monkeypatch):
    """This process fails with its first clip; the other finishes its own, and no third is begun."""
    counted = WarpTeacher._clip

    def fail(self, request):
        raise RuntimeError("the depths cannot be compared")

    monkeypatch.setattr(WarpTeacher, "_clip", fail)
    with pytest.raises(ValueError, match="the depths cannot be compared"):
        run(files, tmp_path / "scene", num_gpus=2)
    assert [path.name for path in (tmp_path / "scene" / "unfinished").iterdir()] == ["5.safetensors"]
    monkeypatch.setattr(WarpTeacher, "_clip", counted)
    run(files, tmp_path / "scene")
    assert made == [0, 1]
    assert content(tmp_path / "scene") == whole


def test_more_gpus_than_there_are_are_refused(files, tmp_path, monkeypatch):
    monkeypatch.setattr(clips, "visible_gpus", lambda: ["0", "1"])
    cuda = torch.device("cuda")
    check_num_gpus(2, cuda)
    check_num_gpus(1, torch.device("cuda:1"))
    with pytest.raises(ValueError, match=r"--num-gpus 3 needs as many GPUs .* found 2"):
        check_num_gpus(3, cuda)
    with pytest.raises(ValueError, match="leave --device out"):
        check_num_gpus(2, torch.device("cuda:1"))
    with pytest.raises(ValueError, match="--num-gpus and --samples-at-once of 1 or more, found 0"):
        run(files, tmp_path / "a", num_gpus=0)
    with pytest.raises(ValueError, match="replay reads them"):
        run(files, tmp_path / "a", num_gpus=2, teacher="replay")
