"""Teachers on a GPU: warping as on the CPU, a full clip in seconds and bounded memory, GEN3C end to end."""

from __future__ import annotations

from pathlib import Path
from time import monotonic

import pytest
import torch

from benchmarks.full_size.inputs import Size, cameras
from benchmarks.splat import scene
from lyra_ns.cache3d.cache import SceneCache
from lyra_ns.codec import load_codec
from lyra_ns.depth.base import PlaneDepth
from lyra_ns.teachers.base import TeacherRequest, cache_on
from lyra_ns.teachers.warp import WarpTeacher
from tests.helpers.small_dataset import straight_path
from tests.helpers.small_gen3c import HEIGHT, NUM_FRAMES, WIDTH, small_autoencoder, small_transformer

pytestmark = pytest.mark.gpu

SMALL = Size(num_frames=9, height=176, width=320)
FULL = Size(num_frames=121, height=704, width=1280)
FULL_SECONDS = 20.0
FULL_GIB = 24.0
"""Of which a clip of 121 frames in float32 is 1.2, and the codec's blocks of it as much again."""


def request(size: Size) -> TeacherRequest:
    """On the CPU, as it comes from files."""
    path = cameras(1, size, "cpu")[0, 0]
    rgb, depth = scene(size, "cpu")
    return TeacherRequest("scene", 0, path, rgb, SceneCache.from_image(rgb, depth, path[0]))


def test_a_gpu_warps_what_a_cpu_does() -> None:
    asked = request(SMALL)
    (on_cpu,) = WarpTeacher(load_codec("linear")).generate([asked])
    (on_gpu,) = WarpTeacher(load_codec("linear", "cuda"), "cuda").generate([asked])
    assert torch.equal(on_gpu.video[0], on_cpu.video[0])
    near = (on_gpu.video.int() - on_cpu.video.int()).abs() <= 2
    assert near.float().mean() > 0.99
    assert ((on_gpu.depth > 0) == (on_cpu.depth > 0)).float().mean() > 0.995
    assert ((on_gpu.z - on_cpu.z).norm() / on_cpu.z.norm()).item() < 0.02


def test_a_full_clip_takes_seconds_and_bounded_memory() -> None:
    asked = request(FULL)
    teacher = WarpTeacher(load_codec("linear", "cuda"), "cuda")
    teacher.preview(request(SMALL))
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before, start = torch.cuda.memory_allocated(), monotonic()
    (clip,) = teacher.generate([asked])
    seconds = monotonic() - start
    gib = (torch.cuda.max_memory_allocated() - before) / 2**30
    print(f"warp, 121 x 704 x 1280: {seconds:.1f} s, {gib:.1f} GiB")
    assert clip.z.shape == (16, 16, 88, 160)
    assert clip.video.shape == (121, 3, 704, 1280)
    assert torch.equal(clip.video[0], (asked.image * 255).round().to(torch.uint8))
    assert clip.z.isfinite().all()
    assert seconds < FULL_SECONDS
    assert gib < FULL_GIB


def test_gen3c_makes_chunks_on_a_gpu() -> None:
    from lyra_ns.gen3c.pipeline import Gen3CPipeline, gen3c_scheduler
    from lyra_ns.teachers.gen3c import Gen3CSettings, Gen3CTeacher

    pipeline = Gen3CPipeline(small_transformer(), small_autoencoder(), gen3c_scheduler()).to("cuda")
    pipeline.set_progress_bar_config(disable=True)
    settings = Gen3CSettings(steps=2, samples_at_once=2, chunk_frames=NUM_FRAMES)
    path = straight_path((0.1, 0.05, 0.0), 2 * NUM_FRAMES - 1)
    image = torch.rand(3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0))
    cache = SceneCache.from_image(image, torch.full((HEIGHT, WIDTH), 2.0), path[0])
    requests = [TeacherRequest("hall", k, path, image, cache) for k in range(3)]
    made = Gen3CTeacher(pipeline, settings, PlaneDepth(2.0)).generate_chunks(requests)
    assert [len(clips) for clips in made] == [2, 2, 2]
    for clip in (clip for clips in made for clip in clips):
        assert not clip.z.is_cuda
        assert clip.z.isfinite().all()
        assert clip.video.shape == (NUM_FRAMES, 3, HEIGHT, WIDTH)


def test_t5_encodes_where_the_policy_says_and_leaves_the_gpu(tmp_path: Path) -> None:
    from lyra_ns.gen3c.memory import POLICIES
    from lyra_ns.gen3c.pipeline import Gen3CPipeline, gen3c_scheduler
    from lyra_ns.teachers.gen3c import load_gen3c
    from tests.gen3c.test_pipeline import t5

    encoder, tokenizer = t5()
    Gen3CPipeline(
        small_transformer(), small_autoencoder(), gen3c_scheduler(), encoder, tokenizer
    ).save_pretrained(tmp_path)
    found = []
    for policy in POLICIES:
        teacher = load_gen3c(tmp_path, "cuda", memory=policy)
        teacher.texts.of(["a"])  # Libraries keep the working memory of their first call.
        before = torch.cuda.memory_allocated()
        found.append(teacher.texts.of(["a red room", "red"]))
        assert torch.cuda.memory_allocated() == before
    for other in found[1:]:
        for text, embedding in other.items():
            assert not embedding.is_cuda
            torch.testing.assert_close(embedding, found[0][text])


def test_a_cache_on_the_current_gpu_is_not_copied() -> None:
    cache = cache_on(request(SMALL).cache, "cuda")
    assert cache_on(cache, "cuda") is cache
    assert cache_on(cache, torch.device("cuda", torch.cuda.current_device())) is cache
