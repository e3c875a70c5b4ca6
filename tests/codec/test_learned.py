"""The learned codec: sizes, causality, its start as the linear codec, its file, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load, save

from lyra_ns.codec import VideoCodec, codec_for, load_codec
from lyra_ns.codec.base import LatentStatistics, MapEncoder, VideoLatentSpec
from lyra_ns.codec.learned import (
    LearnedCodec,
    LearnedCodecConfig,
    LearnedNetwork,
    blocks_of_frames,
    config_of,
    frames_of_blocks,
    join_cells,
    load_learned_codec,
    part_cells,
    patches_of_video,
    video_of_patches,
)
from lyra_ns.codec.linear import blocks_of_video, load_linear_codec
from lyra_ns.decoder.conditioning import ConditioningBuilder
from tests.helpers.small_dataset import straight_path

TINY = LearnedCodecConfig(
    encoder_widths=(8, 16, 16), encoder_blocks=(1, 1, 1), decoder_widths=(8, 16, 16), decoder_blocks=(1, 1, 1)
)
MOST_WEIGHTS = 12_000_000


def random_network(seed: int = 0, config: LearnedCodecConfig = TINY) -> LearnedNetwork:
    """A network none of whose layers is zero: those that begin so are drawn too."""
    torch.manual_seed(seed)
    network = LearnedNetwork(config)
    network.start_from(load_linear_codec())
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():
                parameter.normal_(std=0.05)
    return network


def random_codec(seed: int = 0) -> LearnedCodec:
    generator = torch.Generator().manual_seed(seed)
    mean, std = torch.randn(16, 2, generator=generator), torch.rand(16, 2, generator=generator) + 0.5
    return LearnedCodec(
        random_network(seed), LatentStatistics(mean, std, repeat_last=True), load_linear_codec()
    )


def random_video(
    num_videos: int = 2, num_frames: int = 17, height: int = 32, width: int = 48
) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(num_videos, 3, num_frames, height, width, generator=generator) * 2 - 1


@pytest.fixture(scope="module")
def codec():
    return random_codec()


@pytest.mark.parametrize("size", [(17, 32, 48), (1, 48, 32), (9, 16, 16), (33, 32, 32)])
def test_latents_have_the_shape_the_spec_says(codec, size):
    video = random_video(2, *size)
    raw = codec.encode(video)
    assert tuple(raw.shape[1:]) == codec.spec.latent_shape(*size)
    assert codec.decode(raw).shape == video.shape
    assert isinstance(codec, VideoCodec)


def test_the_encoder_is_causal(codec):
    video = random_video()
    changed = video.clone()
    changed[:, :, 9:] *= -1
    raw, other = codec.encode(video), codec.encode(changed)
    torch.testing.assert_close(raw[:, :, :2], other[:, :, :2])
    assert (raw[:, :, 2] - other[:, :, 2]).abs().max() > 1e-3


def test_the_first_frame_alone_gives_the_first_latent(codec):
    video = random_video()
    torch.testing.assert_close(codec.encode(video[:, :, :1]), codec.encode(video)[:, :, :1])


def test_the_decoder_sees_later_latents_and_every_layer(codec):
    raw = codec.encode(random_video(1))
    changed = raw.clone()
    changed[:, :, 2] += 1
    assert (codec.decode(raw) - codec.decode(changed))[:, :, 0].abs().max() > 1e-5
    video = random_video(1)
    network = random_network()
    mean, log_variance = network.encode(video)
    decoded = network.decode(mean + (0.5 * log_variance).exp())
    (decoded - video).square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in network.parameters())


def test_encoding_is_the_same_every_time_and_one_by_one(codec):
    video = random_video()
    assert torch.equal(codec.encode(video), codec.encode(video))
    torch.testing.assert_close(codec.encode(video)[1:], codec.encode(video[1:]))


def test_an_untrained_network_is_the_linear_codec_with_unit_latents():
    linear = load_linear_codec()
    network = LearnedNetwork(TINY)
    network.start_from(linear)
    video = random_video()
    with torch.no_grad():
        mean, _ = network.encode(video)
        decoded = network.decode(mean)
    torch.testing.assert_close(mean * 0.5, linear.to_diffusion(linear.encode(video)), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(decoded, linear.decode(linear.encode(video)), atol=1e-4, rtol=1e-4)


def test_cells_patches_and_blocks_come_apart_as_they_were_joined():
    cells = torch.randn(2, 9, 4, 6, 5)
    assert torch.equal(part_cells(join_cells(cells, 2, 2), 2, 2), cells)
    video = random_video()
    assert torch.equal(video_of_patches(patches_of_video(video)), video)
    first, groups = blocks_of_video(video)
    assert torch.equal(blocks_of_frames(video[:, :, :1], 1), first)
    assert torch.equal(blocks_of_frames(video[:, :, 1:], 8), groups)
    assert torch.equal(frames_of_blocks(groups, 8), video[:, :, 1:])


def test_diffusion_space_and_back(codec):
    raw = codec.encode(random_video())
    torch.testing.assert_close(codec.from_diffusion(codec.to_diffusion(raw)), raw, atol=1e-5, rtol=1e-5)


def test_the_shipped_size_has_at_most_twelve_million_weights():
    network = LearnedNetwork(LearnedCodecConfig())
    assert sum(parameter.numel() for parameter in network.parameters()) <= MOST_WEIGHTS


def test_the_file_holds_the_codec_and_its_digest(tmp_path, codec):
    path = tmp_path / "codec.safetensors"
    path.write_bytes(codec.to_bytes())
    again = load_codec(f"learned:{path}")
    assert again.spec.codec == f"learned:{path}"
    assert again.spec.digest == codec.spec.digest != random_codec(1).spec.digest
    assert again.to_bytes() == path.read_bytes()
    video = random_video(1)
    assert torch.equal(again.encode(video), codec.encode(video))
    assert torch.equal(again.to_diffusion(again.encode(video)), codec.to_diffusion(codec.encode(video)))
    assert codec_for(again.spec).spec.digest == codec.spec.digest
    with pytest.raises(ValueError, match="of digest 0000000000000000"):
        codec_for(VideoLatentSpec(again.spec.codec, digest="0" * 16))


def test_statistics_are_part_of_the_digest(codec):
    other = LearnedCodec(random_network(), codec.statistics, load_linear_codec())
    assert other.digest == codec.digest
    changed = LatentStatistics(codec.statistics.mean + 1, codec.statistics.std, repeat_last=True)
    assert LearnedCodec(random_network(), changed, load_linear_codec()).digest != codec.digest


def test_maps_have_a_linear_codec_that_is_part_of_the_file(tmp_path, codec):
    maps, linear = random_video(1) * 3, load_linear_codec()
    assert isinstance(codec, MapEncoder)
    assert torch.equal(codec.encode_maps(maps), linear.encode(maps))
    other = replace(linear, first_basis=linear.first_basis.flip(0), digest="")
    changed = LearnedCodec(random_network(), codec.statistics, other)
    assert changed.digest != codec.digest
    path = tmp_path / "codec.safetensors"
    path.write_bytes(changed.to_bytes())
    assert torch.equal(load_learned_codec(path).encode_maps(maps), other.encode(maps))


def test_conditioning_encodes_its_maps_by_the_codec_for_maps(codec):
    cameras = straight_path((0.3, 0.0, 0.2), 9).reshape(1, 1, 9)
    learned, linear = (ConditioningBuilder(one, 8).build(cameras) for one in (codec, load_linear_codec()))
    torch.testing.assert_close(learned.plucker, linear.plucker)


def test_bad_sizes_are_refused(codec):
    with pytest.raises(ValueError, match=r"8k \+ 1 frames, found 16"):
        codec.encode(random_video(1, 16))
    with pytest.raises(ValueError, match="multiples of 16, found 40x48"):
        codec.encode(random_video(1, 1, 40, 48))


def broken_files(codec: LearnedCodec) -> dict[str, bytes]:
    content = codec.to_bytes()
    tensors = load(content)
    length = int.from_bytes(content[:8], "little")
    metadata = json.loads(content[8 : 8 + length])["__metadata__"]
    config = json.loads(metadata["config"])
    wider = json.dumps(config | {"decoder_widths": [16, 16, 16]})
    return {
        "no safetensors": b"not a codec",
        "cut off": content[: len(content) // 2],
        "no format": save(tensors),
        "wrong format": save(tensors, metadata | {"format": "lyra_ns learned codec 99"}),
        "no statistics": save({k: v for k, v in tensors.items() if k != "latent_mean"}, metadata),
        "no codec for maps": save({k: v for k, v in tensors.items() if k != "maps.first_basis"}, metadata),
        "missing weight": save(
            {k: v for k, v in tensors.items() if k != "network.decoder.norm.bias"}, metadata
        ),
        "wrong size": save(tensors, metadata | {"config": wider}),
        "no config": save(tensors, {"format": metadata["format"]}),
        "unknown setting": save(tensors, metadata | {"config": json.dumps(config | {"depth": 3})}),
    }


@pytest.mark.parametrize("kind", list(broken_files(random_codec())))
def test_bad_files_are_refused_in_one_sentence(tmp_path, codec, kind):
    path = tmp_path / "codec.safetensors"
    path.write_bytes(broken_files(codec)[kind])
    with pytest.raises(ValueError, match="is not a learned codec") as refusal:
        load_learned_codec(path)
    assert "\n" not in str(refusal.value)
    assert str(path) in str(refusal.value)


def test_a_missing_file_says_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"training\.codec\.train"):
        load_codec(f"learned:{tmp_path / 'none.safetensors'}")


def test_configurations_survive_json():
    assert config_of(json.loads(json.dumps({**vars(LearnedCodecConfig())}))) == LearnedCodecConfig()
