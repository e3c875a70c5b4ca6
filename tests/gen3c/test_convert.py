"""GEN3C's official containers into a folder for Gen3CPipeline: exact, strict, whole or not at all."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lyra_ns.cli.decoder import Convert
from lyra_ns.gen3c import convert
from lyra_ns.gen3c.convert import (
    build_transformer,
    convert_gen3c,
    load_tokenizer,
    official_network,
    official_tokenizer,
    read_network,
    read_off_config,
)
from lyra_ns.gen3c.transformer import gen3c_config
from tests.helpers.small_gen3c import drawn, small_autoencoder, small_config, small_transformer

SIZES = {"encoder_block_out_channels": (8, 16, 32, 32), "decode_block_out_channels": (16, 32, 32, 32)}


@pytest.fixture(scope="module")
def network() -> dict[str, Tensor]:
    """The official tensors of a small network."""
    return official_network(small_transformer())


def training_state() -> dict[str, Any]:
    """What a checkpoint of the official code holds beside weights; TransformerEngine keeps byte streams."""
    return {
        "net.pos_embedder.seq": torch.arange(8.0),
        "logvar.1.weight": torch.ones(1, 8),
        "net.blocks.block0.blocks.0.block.attn.attn_op._extra_state": io.BytesIO(b"abc"),
    }


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, network: dict[str, Tensor]) -> Path:
    path = tmp_path_factory.mktemp("official") / "model.pt"
    torch.save({"model": network | training_state()}, path)
    return path


def save_script(tensors: dict[str, Tensor], path: Path) -> None:
    """TorchScript with these tensors, some of them buffers, in modules named like the official ones."""
    root = nn.Module()
    for name, tensor in tensors.items():
        module, *parts = root, *name.split(".")
        for part in parts[:-1]:
            if part not in dict(module.named_children()):
                module.add_module(part, nn.Module())
            module = module.get_submodule(part)
        module.register_buffer(parts[-1], tensor.clone())
    torch.jit.save(torch.jit.script(root), str(path))


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the official tokenizer, small, with the statistics of the released one."""
    folder, autoencoder = tmp_path_factory.mktemp("tokenizer"), small_autoencoder()
    tensors = official_tokenizer(autoencoder)
    first = {name: value for name, value in tensors.items() if name.startswith(("encoder.", "quant_conv."))}
    constants = {"encoder.patcher3d.wavelets": torch.ones(2), "encoder.patcher3d._arange": torch.arange(2)}
    save_script(first | constants, folder / "encoder.jit")
    second = {name: value for name, value in tensors.items() if name not in first}
    save_script(second | {"decoder.unpatcher3d.patch_size_buffer": torch.tensor(4)}, folder / "decoder.jit")
    save_statistics(folder, 0.0)
    return folder


def save_statistics(folder: Path, moved_by: float) -> None:
    config = small_autoencoder().config
    mean, std = torch.tensor(config.latents_mean), torch.tensor(config.latents_std)
    torch.save((mean.view(16, 16) + moved_by, std.view(16, 16)), folder / "mean_std.pt")


@pytest.fixture
def saved_tokenizer(tmp_path: Path) -> Path:
    """The same tokenizer as diffusers saves it."""
    small_autoencoder().save_pretrained(tmp_path / "tokenizer" / "vae")
    return tmp_path / "tokenizer"


def test_the_configuration_is_read_off_the_shapes() -> None:
    from diffusers import CosmosTransformer3DModel

    for config in (gen3c_config() | {"num_layers": 3}, small_config("appended")):
        with torch.device("meta"):
            tensors = CosmosTransformer3DModel(**config).state_dict()
        padding = "appended" if config["concat_padding_mask"] else "folded"
        assert read_off_config(tensors, padding) == config


@pytest.mark.parametrize("container", ["model", "state_dict", None])
def test_the_network_comes_through_exactly(
    network: dict[str, Tensor], container: str | None, tmp_path: Path
) -> None:
    content = network | training_state()
    torch.save({container: content} if container else content, tmp_path / "model.pt")
    built = build_transformer(read_network(tmp_path / "model.pt"), torch.float32)
    expected = small_transformer()
    assert dict(built.config) | {"max_size": (16, 32, 32)} == dict(expected.config)
    for name, value in expected.state_dict().items():
        assert torch.equal(built.state_dict()[name], value), name
    for name, value in official_network(built).items():
        assert torch.equal(network[name], value), name


@pytest.mark.slow
def test_the_tokenizer_comes_through_exactly(scripts: Path) -> None:
    found, expected = load_tokenizer(scripts, **SIZES), small_autoencoder()
    assert found.config.latents_mean == pytest.approx(expected.config.latents_mean, abs=1e-6)
    for name, value in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], value), name
    video = drawn(1, 3, 9, 32, 32)
    assert torch.equal(found.encode(video).latent_dist.mode(), expected.encode(video).latent_dist.mode())


def test_a_saved_tokenizer_that_lacks_tensors_is_refused(saved_tokenizer: Path) -> None:
    (file,) = saved_tokenizer.rglob("*.safetensors")
    tensors = load_file(file)
    del tensors["decoder.conv_in.conv_s.weight"]
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 tensors of .* decoder\.conv_in\.conv_s\.weight"):
        load_tokenizer(saved_tokenizer)


@pytest.mark.slow
def test_other_statistics_are_refused(scripts: Path, saved_tokenizer: Path) -> None:
    for folder, sizes in ((scripts, SIZES), (saved_tokenizer, {})):
        save_statistics(folder, 5e-5)
        load_tokenizer(folder, **sizes)
        save_statistics(folder, 2e-4)
        with pytest.raises(ValueError, match=r"means in mean_std\.pt differ .* by up to 0\.0002, more than"):
            load_tokenizer(folder, **sizes)
    torch.save((torch.ones(16), torch.ones(16)), scripts / "mean_std.pt")
    with pytest.raises(ValueError, match=r"holds 16 means, the Cosmos tokenizer has 256"):
        load_tokenizer(scripts, **SIZES)
    torch.save(torch.ones(16), scripts / "mean_std.pt")
    with pytest.raises(ValueError, match="must hold two tensors of one shape"):
        load_tokenizer(scripts, **SIZES)
    (scripts / "mean_std.pt").unlink()
    with pytest.raises(FileNotFoundError, match=r"put the tokenizer's mean_std\.pt beside"):
        load_tokenizer(scripts, **SIZES)
    save_statistics(scripts, 0.0)


@pytest.mark.slow
def test_the_command_writes_a_pipeline(
    checkpoint: Path, saved_tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from lyra_ns.gen3c.pipeline import Gen3CPipeline

    output = tmp_path / "gen3c"
    Convert(checkpoint, output, config="gen3c", tokenizer=saved_tokenizer).run()
    loaded = Gen3CPipeline.from_pretrained(output)
    for name, value in small_transformer().state_dict().items():
        assert torch.equal(loaded.transformer.state_dict()[name], value.bfloat16().float()), name
    assert json.loads((output / "transformer" / "config.json").read_text())["in_channels"] == 82
    printed = capsys.readouterr().out
    assert "2 3D buffers, as bfloat16" in printed
    assert "not the released" in printed
    with pytest.raises(FileExistsError, match="is there already"):
        Convert(checkpoint, output, config="gen3c", tokenizer=saved_tokenizer).run()


@pytest.mark.slow
def test_the_released_file_is_known(
    checkpoint: Path, saved_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import hashlib

    monkeypatch.setattr(convert, "RELEASED_MD5", hashlib.md5(checkpoint.read_bytes()).hexdigest())
    found = convert_gen3c(checkpoint, saved_tokenizer, tmp_path / "gen3c")
    assert (found.is_released, found.num_buffers) == (True, 2)
    assert found.num_weights == sum(weight.numel() for weight in small_transformer().parameters())


@pytest.mark.slow
def test_nothing_half_written_is_left(
    checkpoint: Path, saved_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def replace(source: Path, target: Path) -> None:
        assert (source / "model_index.json").is_file()
        raise OSError("no space left")

    monkeypatch.setattr(convert.os, "replace", replace)
    with pytest.raises(OSError, match="no space left"):
        convert_gen3c(checkpoint, saved_tokenizer, tmp_path / "gen3c")
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer"]


class Evil:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return print, ("run",)


def test_wrong_checkpoints_are_told(
    network: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.pt"
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        read_network(path)
    for content, message in [
        ({"model": network, "code": Evil()}, "cannot be read as a file of plain tensors"),
        ({"weights": torch.ones(1)}, r"no checkpoint of GEN3C.* found \['weights'\]"),
        (torch.ones(1), "found Tensor"),
        (network | {"net.blocks.block0.extra": "text"}, r"no tensor as blocks\.block0\.extra"),
        (network | {"affline_norm.weight": torch.ones(1)}, "with and without `net.`"),
    ]:
        torch.save(content, path)
        with pytest.raises(ValueError, match=message):
            read_network(path)
    assert "run" not in capsys.readouterr().out
    path.write_bytes(b"PK\x03\x04 broken")
    with pytest.raises(ValueError, match="download it again"):
        read_network(path)


def test_wrong_tensors_are_told(network: dict[str, Tensor]) -> None:
    tensors = {name.removeprefix("net."): value for name, value in network.items()}
    other = tensors | {"x_embedder.proj.1.weight": torch.ones(48, 72)}
    with pytest.raises(ValueError, match="found 18 and 16: give a GEN3C checkpoint, not one of another"):
        build_transformer(other)
    name = "blocks.block1.blocks.0.block.attn.to_q.0.weight"
    with pytest.raises(ValueError, match=r"1 tensors have another shape .*attn1\.to_q\.weight with \[3, 3\]"):
        build_transformer(tensors | {name: torch.ones(3, 3)})
    with pytest.raises(ValueError, match=r"the checkpoint must hold 50 tensors .* found 1 missing"):
        build_transformer({key: value for key, value in tensors.items() if key != name})


def test_a_missing_tokenizer_is_told(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give --tokenizer"):
        Convert(checkpoint, tmp_path / "gen3c", config="gen3c").run()
    with pytest.raises(FileNotFoundError, match=r"expected encoder\.jit, decoder\.jit and mean_std\.pt"):
        Convert(checkpoint, tmp_path / "gen3c", config="gen3c", tokenizer=tmp_path).run()
    (tmp_path / "autoencoder.jit").write_bytes(b"broken")
    with pytest.raises(ValueError, match="cannot be read as TorchScript"):
        Convert(checkpoint, tmp_path / "gen3c", config="gen3c", tokenizer=tmp_path).run()
    with pytest.raises(ValueError, match="--config-file"):
        Convert(
            checkpoint, tmp_path / "g", config="gen3c", tokenizer=tmp_path, config_file=tmp_path / "c"
        ).run()
    with pytest.raises(ValueError, match="--tokenizer belongs to --config gen3c"):
        Convert(checkpoint, tmp_path / "g.safetensors", config="lyra", tokenizer=tmp_path).run()
    assert not (tmp_path / "gen3c").exists()
