"""Latent files: every format that is about, and no pickle that runs anything."""

from __future__ import annotations

import os
import pickle
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from lyra_ns.data.latent_files import read_latents, write_latents

SHAPE = (16, 3, 4, 6)


@pytest.fixture
def z():
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("suffix", [".pkl", ".safetensors"])
def test_round_trip_is_exact(tmp_path, z, suffix):
    path = tmp_path / f"clip{suffix}"
    write_latents(path, z)
    assert torch.equal(read_latents(path), z)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_official_file_is_a_batched_float32_array(tmp_path, z):
    write_latents(tmp_path / "clip.pkl", z.half())
    stored = torch.load(tmp_path / "clip.pkl", weights_only=False)
    assert isinstance(stored, np.ndarray)
    assert stored.shape == (1, *SHAPE)
    assert stored.dtype == np.float32


def test_all_ways_of_writing_are_read(tmp_path, z):
    array, batched = z.numpy(), z[None].numpy()
    ways = {
        "zip_array": lambda path: torch.save(batched, path),
        "zip_tensor": lambda path: torch.save(z, path),
        "zip_parameter": lambda path: torch.save(torch.nn.Parameter(z), path),
        "legacy_array": lambda path: torch.save(batched, path, _use_new_zipfile_serialization=False),
        "legacy_tensor": lambda path: torch.save(z, path, _use_new_zipfile_serialization=False),
        "fortran_order": lambda path: torch.save(np.asfortranarray(array), path),
        "big_endian": lambda path: torch.save(array.astype(">f4"), path),
    }
    for name, write in ways.items():
        path = tmp_path / f"{name}.pkl"
        write(path)
        assert torch.equal(read_latents(path), z), name


def test_both_generations_of_numpy_are_read(tmp_path, z):
    """The legacy form, which is no archive with checksums, so that the name can be changed in it."""
    torch.save(z.numpy(), tmp_path / "here.pkl", _use_new_zipfile_serialization=False)
    content = (tmp_path / "here.pkl").read_bytes()
    old, new = b"numpy.core.multiarray", b"numpy._core.multiarray"
    renamed = content.replace(new, old) if new in content else content.replace(old, new)
    assert renamed != content
    (tmp_path / "other.pkl").write_bytes(renamed)
    assert torch.equal(read_latents(tmp_path / "other.pkl"), z)


def test_a_pickle_without_torch_is_no_latent(tmp_path, z):
    """The official code reads none either."""
    for protocol in (2, pickle.HIGHEST_PROTOCOL):
        (tmp_path / "clip.pkl").write_bytes(pickle.dumps(z.numpy(), protocol))
        with pytest.raises(
            ValueError, match=r"clip\.pkl must be a file of torch\.save .*neither form of torch\."
        ):
            read_latents(tmp_path / "clip.pkl")


def test_threads_read_side_by_side(tmp_path, z):
    """What is allowed is one list of the process."""
    write_latents(tmp_path / "clip.pkl", z)
    with ThreadPoolExecutor(8) as pool:
        assert all(torch.equal(read, z) for read in pool.map(read_latents, [tmp_path / "clip.pkl"] * 200))


class Makes:
    """Pickles to `make(*arguments)`, built with a state."""

    def __init__(self, make, arguments, state=None) -> None:
        self.made = (make, arguments, state) if state is not None else (make, arguments)

    def __reduce__(self):
        return self.made


def test_no_more_is_allocated_than_the_file_holds(tmp_path, z):
    """Arrays and tensors that declare terabytes, and an archive that unpacks to much more than its size."""
    path, huge = tmp_path / "clip.pkl", (1, 10**4, 10**4, 10**4)
    reconstruct, arguments, state = np.zeros(3, np.float32).__reduce__()
    values = {
        "declared": Makes(reconstruct, arguments, (state[0], huge, *state[2:])),
        "reconstructed": Makes(reconstruct, (np.ndarray, huge, b"b")),
        "made": Makes(np.ndarray, (huge,)),
        "expanded": torch.zeros(1, 1, 1, 1).expand(huge),
        "objects": np.array([[], {}], object),
    }
    for value in values.values():
        for is_zip in (True, False):
            torch.save(value, path, _use_new_zipfile_serialization=is_zip)
            with pytest.raises(
                ValueError, match=r"clip\.pkl must (be a file of|hold) .*(copy or )?write it again"
            ):
                read_latents(path)
    write_latents(path, torch.zeros(16, 3, 40, 60))
    with (
        zipfile.ZipFile(path) as whole,
        zipfile.ZipFile(tmp_path / "bomb.pkl", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for name in whole.namelist():
            bomb.writestr(name, whole.read(name))
    with pytest.raises(ValueError, match="members that are larger than the file"):
        read_latents(tmp_path / "bomb.pkl")


@pytest.mark.slow
@pytest.mark.parametrize("is_zip", [True, False])
def test_any_damage_is_one_sentence(tmp_path, z, is_zip):
    """One byte changed at each of many places: the latents, other numbers, or the sentence."""
    path = tmp_path / "clip.pkl"
    torch.save(z[:, :1, :2, :2].numpy(), path, _use_new_zipfile_serialization=is_zip)
    content = path.read_bytes()
    for place in range(0, len(content), 3):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1 :])
        try:
            read_latents(path)
        except ValueError as error:
            assert str(error).startswith(f"latent {path} must ")  # noqa: PT017 - some changes do no harm


@pytest.mark.parametrize("kind", [np.float16, np.float64])
def test_other_precisions_become_float32(tmp_path, z, kind):
    torch.save(z.numpy().astype(kind), tmp_path / "clip.pkl")
    read = read_latents(tmp_path / "clip.pkl")
    assert read.dtype == torch.float32
    torch.testing.assert_close(read, z, atol=2e-3, rtol=0)


class RunsSomething:
    """Pickles to a call of os.system."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("way", ["zip", "legacy"])
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path, way):
    path, witness = tmp_path / "clip.pkl", tmp_path / "witness"
    bad = RunsSomething(f"touch {witness}")
    torch.save([bad], path, _use_new_zipfile_serialization=way == "zip")
    with pytest.raises(
        ValueError, match=rf"clip\.pkl must hold only an array, found .*{os.system.__module__}\.system"
    ):
        read_latents(path)
    assert not witness.exists()


def test_a_program_is_refused(tmp_path):
    torch.jit.script(torch.nn.ReLU()).save(tmp_path / "clip.pkl")
    with pytest.raises(ValueError, match="TorchScript program; it was not run"):
        read_latents(tmp_path / "clip.pkl")


@pytest.mark.parametrize("suffix", [".pkl", ".safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.98])
def test_a_cut_file_is_named(tmp_path, z, suffix, share):
    path = tmp_path / f"clip{suffix}"
    write_latents(path, z)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ValueError, match=r"clip\..*cut short or of another kind .*: copy or write it again"):
        read_latents(path)


def test_wrong_contents_are_named(tmp_path, z):
    path = tmp_path / "clip.pkl"
    cases = [
        (z.numpy()[0], r"shape \[C, T, h, w\] or \[1, C, T, h, w\], found \(3, 4, 6\)"),
        (torch.stack([z, z]), r"found \(2, 16, 3, 4, 6\)"),
        (np.zeros(SHAPE, np.int64), "an array of 'i8', not of floats"),
        ({"z": 1.0}, "array of floats, found dict"),
        (np.full(SHAPE, np.nan, np.float32), "must be finite, found NaN"),
    ]
    for value, message in cases:
        torch.save(value, path)
        with pytest.raises(ValueError, match=message):
            read_latents(path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_latents(tmp_path / "none.pkl")
    with pytest.raises(ValueError, match=r"must end in \.pkl or \.safetensors"):
        write_latents(tmp_path / "clip.npz", z)
