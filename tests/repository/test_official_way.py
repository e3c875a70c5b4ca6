"""The whole way of someone with official files, at tiny size: tars and checkpoint to Gaussians."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lyra_ns.cli.main import main
from lyra_ns.decoder.config import DecoderConfig
from lyra_ns.decoder.model import LatentGaussianDecoder
from lyra_ns.export.ply import load_ply
from tests.helpers.official_dataset import NUM_FRAMES, write_official_dataset, write_tar

GAUSSIANS_PER_TRAJECTORY = NUM_FRAMES * (32 // 8) * (48 // 8)


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tars of two trajectories each, as a download would leave it."""
    plain = write_official_dataset(tmp_path_factory.mktemp("plain") / "static", scenes=("a",))
    folder = tmp_path_factory.mktemp("download")
    for number in range(3):
        wanted = {str(2 * number), str(2 * number + 1)}
        write_tar(folder / f"part{number}.tar", plain, "static/", lambda file, w=wanted: file.parts[0] in w)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training checkpoint of the official code: the full network in bfloat16, untrained."""
    torch.manual_seed(0)
    tensors = LatentGaussianDecoder(DecoderConfig()).state_dict()
    path = tmp_path_factory.mktemp("checkpoint") / "mp_rank_00_model_states.pt"
    module = {key: value.bfloat16() for key, value in tensors.items()}
    torch.save({"module": module, "global_steps": 1, "ds_version": "0.17.5"}, path)
    return path


def command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    """Run `ns-lyra` with these arguments; SystemExit where it fails."""
    monkeypatch.setattr("sys.argv", ["ns-lyra", *map(str, arguments)])
    main()


@pytest.mark.slow
def test_from_the_download_to_gaussians(
    tars: Path,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command(monkeypatch, "check-data", tars)
    assert "1 scenes, 6 clips" in capsys.readouterr().out
    decoder = tmp_path / "lyra.safetensors"
    command(monkeypatch, "convert", checkpoint, "--output", decoder, "--config", "lyra")
    assert "a static decoder of 32,753,996 parameters" in capsys.readouterr().out

    options = ("--checkpoint", decoder, "--device", "cpu", "--codec", "linear", "--prune-ratio", "0.8")
    trajectories = ("--trajectories", "5", "0")
    output = tmp_path / "scene.ply"
    command(monkeypatch, "reconstruct", tars, "--output", output, *options, *trajectories)
    found = load_ply(output)
    assert found.num == int(2 * GAUSSIANS_PER_TRAJECTORY * (1 - 0.8))
    assert found.means.isfinite().all()

    unpacked = tmp_path / "unpacked"
    command(monkeypatch, "unpack", tars, "--output", unpacked)
    assert (unpacked / "static/5/latent/a.pkl").is_file()
    again = tmp_path / "again.ply"
    command(monkeypatch, "reconstruct", unpacked, "--output", again, *options, *trajectories)
    assert again.read_bytes() == output.read_bytes()
    # From the checkpoint itself: the weights are the same, and so is the picture.
    raw = (*options[2:], "--checkpoint", checkpoint, "--config", "lyra")
    command(monkeypatch, "reconstruct", tars, "--output", again, *raw, *trajectories)
    assert again.read_bytes() == output.read_bytes()

    bfloat16 = ("--plucker-dtype", "bfloat16", "--ray-dtype", "bfloat16")
    command(monkeypatch, "reconstruct", tars, "--output", again, *options, *trajectories, *bfloat16)
    assert not torch.equal(load_ply(again).means, found.means)


def test_data_without_a_manifest_needs_the_name_of_its_codec(
    tars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        command(monkeypatch, "reconstruct", tars, "--output", tmp_path / "scene.ply", "--device", "cpu")
    assert "give --codec cosmos:PATH (official data)" in capsys.readouterr().err
