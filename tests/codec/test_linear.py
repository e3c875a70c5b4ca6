"""The codecs: sizes, causality, linearity, statistics, and what they say when something is missing."""

from __future__ import annotations

import shutil
import sys

import pytest
import torch
from torch.nn import functional

from lyra_ns.cameras import plucker_map, ray_grid
from lyra_ns.codec import VideoLatentSpec, codec_for, load_codec
from lyra_ns.codec.base import LatentStatistics
from lyra_ns.codec.cosmos import load_cosmos_codec
from lyra_ns.codec.linear import blocks_of_video, load_linear_codec, video_of_blocks
from lyra_ns.data.store import LyraStore
from tests.helpers.small_dataset import HEIGHT, WIDTH, smooth_video, straight_path, write_small_dataset
from training.linear_codec.fit import fit_codec_file, fit_from_store, fit_linear_codec


@pytest.fixture(scope="module")
def codec():
    return load_codec("linear")


def random_video(num_videos: int = 2, num_frames: int = 17, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(num_videos, 3, num_frames, HEIGHT, WIDTH, generator=generator) * 2 - 1


def test_blocks_hold_one_place_in_space_and_time():
    video = random_video()
    first, groups = blocks_of_video(video)
    assert torch.equal(first[1, 0, 2, 3].view(3, 8, 8), video[1, :, 0, 16:24, 24:32])
    assert torch.equal(groups[1, 1, 2, 3].view(3, 8, 8, 8), video[1, :, 9:17, 16:24, 24:32])
    assert torch.equal(video_of_blocks(first, groups), video)


def test_linear_latents_have_the_shape_the_spec_says(codec):
    raw = codec.encode(random_video())
    assert tuple(raw.shape[1:]) == codec.spec.latent_shape(17, HEIGHT, WIDTH) == (16, 3, 4, 6)
    assert codec.decode(raw).shape == (2, 3, 17, HEIGHT, WIDTH)
    assert codec.encode(random_video(1, 1)).shape == (1, 16, 1, 4, 6)


def test_linear_encoding_is_linear_and_zero_stays_zero(codec):
    one, other = random_video(seed=1), random_video(seed=2)
    combined = codec.encode(2.0 * one - 3.0 * other)
    torch.testing.assert_close(
        combined, 2 * codec.encode(one) - 3 * codec.encode(other), atol=1e-4, rtol=1e-4
    )
    assert not codec.encode(torch.zeros_like(one)).any()


def test_linear_codec_is_causal(codec):
    video = random_video()
    changed = video.clone()
    changed[:, :, 9:] = 0
    assert torch.equal(codec.encode(video)[:, :, :2], codec.encode(changed)[:, :, :2])
    assert torch.equal(codec.encode(video[:, :, :1]), codec.encode(video)[:, :, :1])
    assert not torch.equal(codec.encode(video)[:, :, 2], codec.encode(changed)[:, :, 2])


def test_encoding_what_was_decoded_gives_the_same_latents(codec):
    raw = torch.randn(2, 16, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(codec.encode(codec.decode(raw)), raw, atol=1e-4, rtol=1e-4)


def test_bases_are_orthonormal(codec):
    for basis in (codec.first_basis, codec.group_basis):
        torch.testing.assert_close(basis @ basis.T, torch.eye(16), atol=1e-5, rtol=0)


def test_single_frames_equal_those_of_the_whole_video(codec):
    raw = torch.randn(17, 16, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    whole = codec.decode(raw)
    frames = list(range(17))
    expected = torch.stack([whole[n, :, frame] for n, frame in enumerate(frames)])
    torch.testing.assert_close(codec.decode_frames(list(raw), frames), expected, atol=1e-5, rtol=1e-5)


def psnr(video: torch.Tensor, other: torch.Tensor) -> float:
    return float(-10 * ((video - other).square().mean() / 4).log10())


@pytest.mark.parametrize("seed", [0, 1])
def test_smooth_video_survives(codec, seed):
    colour = smooth_video(seed)[None] * 2 - 1
    grey = colour.mean(1, keepdim=True).expand(-1, 3, -1, -1, -1)
    assert psnr(grey, codec.decode(codec.encode(grey))) > 35
    # Three unrelated colour channels are the hardest case, and how well it goes depends on the scenes of the
    # fit; but 16 numbers a block must never do worse than the 3 of its mean colour.
    first = functional.avg_pool3d(colour[:, :, :1], (1, 8, 8))
    later = functional.avg_pool3d(colour[:, :, 1:], 8)
    parts = [
        functional.interpolate(first, scale_factor=(1, 8, 8)),
        functional.interpolate(later, scale_factor=8),
    ]
    assert psnr(colour, codec.decode(codec.encode(colour))) > psnr(colour, torch.cat(parts, 2))


def test_diffusion_space_round_trip_and_half_precision(codec):
    raw = codec.encode(random_video())
    z = codec.to_diffusion(raw)
    torch.testing.assert_close(codec.from_diffusion(z), raw, atol=1e-4, rtol=1e-4)
    assert codec.from_diffusion(z.half()).dtype == torch.float32
    first, later = codec.statistics.mean.unbind(1), codec.statistics.std.unbind(1)
    expected = 0.5 * (raw[:, 5, 2] - first[1][5]) / later[1][5]
    torch.testing.assert_close(z[:, 5, 2], expected)


def test_statistics_name_an_axis_mistake():
    statistics = LatentStatistics(torch.zeros(16, 3), torch.ones(16, 3))
    with pytest.raises(ValueError, match=r"16 channels on axis -4, found shape \(3, 16, 4, 6\)"):
        statistics.to_diffusion(torch.zeros(3, 16, 4, 6))
    with pytest.raises(ValueError, match="3 latent frames, found 4"):
        statistics.from_diffusion(torch.zeros(16, 4, 4, 6))


def test_statistics_differ_by_channel_and_latent_frame():
    mean = torch.arange(6.0).view(2, 3)
    statistics = LatentStatistics(mean, torch.ones(2, 3) * 0.5)
    z = statistics.to_diffusion(torch.zeros(1, 2, 2, 1, 1))
    assert z.flatten().tolist() == [0.0, -1.0, -3.0, -4.0]


@pytest.mark.parametrize("size", [(16, 32, 48), (17, 30, 48), (0, 32, 48)])
def test_sizes_that_do_not_fit_are_named(codec, size):
    with pytest.raises(ValueError, match="must"):
        codec.encode(torch.zeros(1, 3, *size))


def blurred_noise(seed: int) -> torch.Tensor:
    coarse = torch.randn(2, 3, 5, 16, 16, generator=torch.Generator().manual_seed(seed))
    return functional.interpolate(coarse, (17, 64, 64), mode="trilinear")


@pytest.mark.slow
def test_fit_is_deterministic_and_best_on_its_own_videos(tmp_path, codec):
    videos = [blurred_noise(1), blurred_noise(2)]
    fit = fit_codec_file(videos, tmp_path / "codec.safetensors")
    again = fit_linear_codec(videos)
    assert again.codec.to_bytes() == (tmp_path / "codec.safetensors").read_bytes()
    loaded = load_linear_codec(tmp_path / "codec.safetensors")
    error = torch.stack(
        [(loaded.decode(loaded.encode(v)) - v)[:, :, 1:].square().mean() for v in videos]
    ).mean()
    other = torch.stack(
        [(codec.decode(codec.encode(v)) - v)[:, :, 1:].square().mean() for v in videos]
    ).mean()
    assert error < other
    torch.testing.assert_close(float(error), fit.group_error, rtol=1e-3, atol=0)


@pytest.mark.slow
def test_fitted_statistics_are_those_of_the_latents():
    videos = [blurred_noise(1), blurred_noise(2)]
    codec = fit_linear_codec(videos).codec
    z = torch.cat([codec.to_diffusion(codec.encode(video)) for video in videos])
    for part in (z[:, :, :1], z[:, :, 1:]):
        columns = part.transpose(0, 1).flatten(1)
        torch.testing.assert_close(columns.mean(1), torch.zeros(16), atol=1e-3, rtol=0)
        torch.testing.assert_close(columns.std(1), torch.full((16,), 0.5), atol=1e-3, rtol=0)


def test_mean_brightness_is_positive_in_both_bases(codec):
    white = codec.encode(torch.ones(1, 3, 9, 8, 8))[0, 0].flatten()
    assert (white > 10).all()


def test_fit_refuses_too_little():
    with pytest.raises(ValueError, match="needs more than 16 blocks"):
        fit_linear_codec([torch.zeros(1, 3, 9, 8, 8)])
    with pytest.raises(ValueError, match="vary in fewer than 16 ways"):
        fit_linear_codec([torch.zeros(1, 3, 17, 64, 64)])


@pytest.mark.slow
def test_fit_from_a_dataset(tmp_path):
    root = write_small_dataset(tmp_path, num_scenes=1)
    fit = fit_from_store(root, tmp_path / "out.safetensors", num_scenes=1)
    # Six clips, two of them at half size too, and two ray maps of three of them.
    assert fit.num_videos == 6 + 2 + 2 * 3
    assert "PSNR" in str(fit)
    fitted = load_linear_codec(tmp_path / "out.safetensors")
    assert fitted.spec.num_channels == 16
    path = straight_path((1.0, 0.5, 0.3))
    maps = plucker_map(ray_grid(path, HEIGHT, WIDTH)).movedim(-1, 0)[None]
    colours = [
        clip.rgb().transpose(0, 1)[None] / 127.5 - 1 for clip in LyraStore(root).scene("a").clips.values()
    ]
    without_maps = fit_linear_codec(colours).codec
    for map_of_rays in (maps[:, :3], maps[:, 3:]):
        errors = [
            (each.decode(each.encode(map_of_rays)) - map_of_rays).square().mean()
            for each in (fitted, without_maps)
        ]
        assert errors[0] < 0.2 * errors[1]


@pytest.mark.slow
def test_a_digest_names_the_weights(codec, tmp_path):
    assert codec.digest == load_linear_codec().digest == codec.to("cpu").digest
    assert len(codec.digest) == 16
    assert codec.spec.digest == codec.digest
    path = tmp_path / "other.safetensors"
    other = fit_codec_file([blurred_noise(1)], path).codec
    assert other.digest != codec.digest
    assert load_linear_codec(path).digest == other.digest


def test_latents_of_another_fit_are_refused(codec):
    ours = VideoLatentSpec("linear", digest=codec.digest)
    assert codec_for(ours).spec == codec.spec
    assert codec_for(VideoLatentSpec("linear")).spec == codec.spec
    assert codec_for(VideoLatentSpec("unknown"), name="linear").spec == codec.spec
    other = VideoLatentSpec("linear", digest="0123456789abcdef")
    for name in ("auto", "linear"):
        with pytest.raises(
            ValueError, match=f"0123456789abcdef.*found.*{codec.digest}: write the data again"
        ):
            codec_for(other, name=name)
    with pytest.raises(ValueError, match="no manifest that names the codec"):
        codec_for(VideoLatentSpec("unknown"))


def test_unknown_and_missing_codecs_say_what_to_do(tmp_path):
    with pytest.raises(ValueError, match="'linear', 'learned:FILE' or 'cosmos:PATH', found 'wavelet'"):
        load_codec("wavelet")
    with pytest.raises(FileNotFoundError, match=r"expected a folder with config\.json"):
        load_codec(f"cosmos:{tmp_path}/none")
    with pytest.raises(FileNotFoundError, match=r"training\.linear_codec"):
        load_linear_codec(tmp_path / "none.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"no tensors here")
    with pytest.raises(ValueError, match="is not a linear codec"):
        load_linear_codec(tmp_path / "bad.safetensors")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="could not be loaded"):
        load_codec(f"cosmos:{tmp_path}")


def test_missing_diffusers_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ModuleNotFoundError, match="pip install -U diffusers"):
        load_codec("cosmos:somewhere")


@pytest.fixture(scope="module")
def cosmos_folder(tmp_path_factory):
    from diffusers import AutoencoderKLCosmos

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("cosmos")
    AutoencoderKLCosmos(
        encoder_block_out_channels=(8, 8, 16, 16),
        decode_block_out_channels=(8, 16, 16, 16),
        num_layers=1,
        attention_resolutions=(32,),
        latents_mean=[0.01 * number for number in range(16 * 16)],
        latents_std=[1 + 0.01 * number for number in range(16 * 16)],
    ).save_pretrained(folder)
    return folder


def test_cosmos_codec_is_causal_and_sized_like_the_linear_one(cosmos_folder):
    codec = load_codec(f"cosmos:{cosmos_folder}")
    video = random_video(num_videos=2)
    raw = codec.encode(video)
    assert tuple(raw.shape[1:]) == codec.spec.latent_shape(17, HEIGHT, WIDTH) == (16, 3, 4, 6)
    assert codec.decode(raw).shape == video.shape
    assert raw.dtype == torch.float32
    assert not raw.requires_grad
    torch.testing.assert_close(codec.encode(video[:, :, :1]), raw[:, :, :1], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(codec.encode(video[1:]), raw[1:], atol=1e-5, rtol=1e-4)


def test_cosmos_statistics_are_per_channel_and_latent_frame(cosmos_folder):
    codec = load_codec(f"cosmos:{cosmos_folder}")
    z = codec.to_diffusion(torch.zeros(1, 16, 3, 1, 1))
    torch.testing.assert_close(float(z[0, 2, 1]), -0.5 * 0.33 / 1.33, rtol=1e-5, atol=0)
    raw = torch.randn(2, 16, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(codec.from_diffusion(codec.to_diffusion(raw)), raw)
    with pytest.raises(ValueError, match="16 latent frames, found 17"):
        codec.from_diffusion(torch.zeros(1, 16, 17, 1, 1))


@pytest.mark.parametrize("subfolder", ["", "vae"])
def test_hub_repository_may_hold_its_weights_in_a_subfolder(cosmos_folder, monkeypatch, tmp_path, subfolder):
    """The hub itself is played by a local copy of a repository."""
    from diffusers import AutoencoderKLCosmos

    local = tmp_path / "repository"
    shutil.copytree(cosmos_folder, local / subfolder)
    from_pretrained = AutoencoderKLCosmos.from_pretrained

    def from_hub(name, **options):
        assert name == "owner/name"
        return from_pretrained(str(local), **options)

    monkeypatch.setattr(AutoencoderKLCosmos, "from_pretrained", from_hub)
    codec = load_cosmos_codec("owner/name")
    assert codec.spec.codec == "cosmos:owner/name"
    monkeypatch.undo()
    assert codec.spec.digest == load_cosmos_codec(str(cosmos_folder)).spec.digest


def test_hub_repository_without_weights_is_named(monkeypatch):
    """Both places were tried, and both reasons are told."""
    from diffusers import AutoencoderKLCosmos

    def from_hub(name, subfolder="root"):
        raise OSError(f"no config in {subfolder}")

    monkeypatch.setattr(AutoencoderKLCosmos, "from_pretrained", from_hub)
    with pytest.raises(FileNotFoundError, match="no config in root and in vae: no config in vae"):
        load_cosmos_codec("owner/name")


def test_official_mean_std_file_takes_precedence(cosmos_folder, tmp_path):
    vae = tmp_path / "vae"
    vae.mkdir()
    for file in cosmos_folder.iterdir():
        (vae / file.name).write_bytes(file.read_bytes())
    torch.save((torch.full((256,), 3.0), torch.full((256,), 2.0)), vae / "mean_std.pt")
    for location in (tmp_path, vae / "config.json"):
        codec = load_cosmos_codec(str(location))
        assert float(codec.to_diffusion(torch.zeros(1, 16, 1, 1, 1))[0, 0]) == -0.75
    torch.save((torch.zeros(250), torch.ones(250)), vae / "mean_std.pt")
    with pytest.raises(ValueError, match="multiple of 16, found 250 and 250"):
        load_cosmos_codec(str(vae))
