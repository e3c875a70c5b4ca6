"""The nine stages: their numbers, the options they run with, what the driver skips, resumes and refuses."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from torch import nn

from lyra_ns.curriculum import run
from lyra_ns.curriculum.run import Curriculum, read_state
from lyra_ns.curriculum.stages import (
    SCALES,
    RunChoices,
    arguments_of,
    command_of,
    settings_of,
    stage_options,
    stage_table,
    trainer_config_of,
)
from lyra_ns.decoder.checkpoints import load_decoder, save_decoder
from lyra_ns.decoder.model import LatentGaussianDecoder
from lyra_ns.plugin.components import load_initial_weights
from tests.helpers.small_dataset import write_small_clip, write_small_dataset

FULL, TINY = SCALES["full"], SCALES["tiny"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Static scenes."""
    return write_small_dataset(tmp_path_factory.mktemp("static"), num_scenes=1, num_trajectories=1)


@pytest.fixture(scope="module")
def dynamic_data(tmp_path_factory) -> Path:
    """Dynamic scenes."""
    root = tmp_path_factory.mktemp("dynamic")
    write_small_clip(root / "dynamic", "a", 0, seed=0)
    return root


def test_the_official_table() -> None:
    """docs/reference/lyra_training.md, "Curriculum", column by column."""
    stages = FULL.stages
    assert [FULL.cumulative_steps(stage) for stage in stages] == [
        10_000, 12_500, 15_000, 17_500, 75_000, 82_000, 83_000, 90_000, 91_000,
    ]  # fmt: skip
    assert [stage.num_input_frames for stage in stages] == [17, 49, 49, 49, *[None] * 5]
    sizes = [(176, 320), (176, 320), (352, 640), (704, 1280)]
    assert [stage.image_size for stage in stages] == [*sizes, *[None] * 5]
    assert [stage.num_trajectories_max for stage in stages] == [1] * 5 + [6] * 4
    assert [stage.num_target_frames for stage in stages] == [17, 49, 49, 49, 9, 9, 9, 1, 1]
    assert [stage.scenes_per_step for stage in stages] == [4, 4, 2, 1, 1, 1, 1, 1, 1]
    assert [stage.inputs for stage in stages] == ["encoded"] * 4 + ["stored"] * 5
    assert [stage.target_distribution for stage in stages[:7]] == ["uniform"] * 5 + ["exponential"] * 2
    assert [(stage.prune_ratio, stage.opacity) for stage in stages if stage.prune_ratio] == [(0.8, 0.1)] * 2
    assert all(stage.opacity == 0 for stage in stages if not stage.prune_ratio)
    names = [stage.name for stage in stages]
    assert [stage.starts_from for stage in stages] == [
        None, names[0], names[1], names[2], names[3], names[4], names[5], names[5], names[7],
    ]  # fmt: skip
    assert [stage.is_dynamic for stage in stages] == [False] * 7 + [True] * 2
    assert all(stage.frame_gap == (45, 121) for stage in stages)


def test_the_tiny_stages_are_the_same_ones() -> None:
    """Names, order, kinds of inputs, batches of several scenes, pruning and times."""
    for tiny, full in zip(TINY.stages, FULL.stages, strict=True):
        for name in ("name", "starts_from", "inputs", "num_trajectories_max", "prune_ratio", "is_dynamic"):
            assert getattr(tiny, name) == getattr(full, name)
        assert tiny.num_steps < full.num_steps
        assert (tiny.scenes_per_step > 1) == (full.scenes_per_step > 1)
        assert (tiny.image_size is None) == (full.image_size is None)


def test_stages_are_chosen_by_number_range_and_name() -> None:
    """In their order, each once."""

    def numbers(text: str) -> list[int]:
        return [FULL.number(stage) for stage in FULL.chosen(text)]

    assert numbers("1-7") == [1, 2, 3, 4, 5, 6, 7]
    assert numbers("9, multi-6,6,2-3") == [2, 3, 6, 9]
    for wrong in ("0", "10", "5-3", "multi", "-1"):
        with pytest.raises(ValueError, match="numbers from 1 to 9, ranges of them or names"):
            FULL.chosen(wrong)
    with pytest.raises(ValueError, match="no stage was chosen"):
        FULL.chosen(" ,")


@pytest.mark.slow
def test_what_runs_is_what_the_options_say(data: Path, tmp_path: Path) -> None:
    """Every column of the table arrives in the trainer's configuration."""
    choices = RunChoices(tmp_path, data, data, seed=7, num_devices=2, target_frames="latents")
    for stage in FULL.stages:
        config = trainer_config_of(stage_options(FULL, stage, choices, tmp_path / "weights.safetensors"))
        manager, model = config.pipeline.datamanager, config.pipeline.model
        sampling = manager.sampling
        assert config.max_num_iterations == stage.num_steps
        assert (manager.data, manager.scenes_per_step, manager.seed) == (data, stage.scenes_per_step, 7)
        assert (config.machine.num_devices, config.machine.seed) == (2, 7)
        assert sampling.num_trajectories_max == stage.num_trajectories_max
        assert sampling.num_target_frames == stage.num_target_frames
        assert sampling.target_distribution == stage.target_distribution
        assert sampling.image_size == stage.image_size
        assert sampling.num_input_frames == stage.num_input_frames
        assert (sampling.frame_gap_min, sampling.frame_gap_max) == stage.frame_gap
        assert sampling.inputs == stage.inputs
        assert sampling.target_frames == ("rgb" if stage.inputs == "encoded" else "latents")
        assert (model.prune_ratio, model.loss.opacity) == (stage.prune_ratio, stage.opacity)
        assert model.decoder.use_time == stage.is_dynamic
        assert model.init_from == str(tmp_path / "weights.safetensors")
        assert (model.loss.mse, model.loss.lpips, model.loss.depth, model.loss.lpips_net) == (
            1.0, 0.5, 0.05, "vgg",
        )  # fmt: skip
        assert config.optimizers["decoder"]["optimizer"].lr == 1e-4
        assert config.optimizers["decoder"]["scheduler"].warmup_steps == 100
        with torch.device("meta"):
            decoder = LatentGaussianDecoder(model.decoder)
        assert len(decoder.state_dict()) == 254
        assert config.get_checkpoint_dir() == tmp_path / "runs/lyra" / stage.name / "nerfstudio_models"


def test_commands_are_the_same_words_and_survive_a_shell(tmp_path: Path) -> None:
    """Also with blanks in paths."""
    choices = RunChoices(tmp_path / "two words", Path("my data"))
    options = stage_options(TINY, TINY.stages[0], choices, None)
    assert shlex.split(command_of(options)) == ["ns-train", "lyra", *arguments_of(options)]
    assert trainer_config_of(options).output_dir == tmp_path / "two words"
    elsewhere = stage_options(TINY, TINY.stages[0], replace(choices, device="cuda", data=Path("x")), None)
    assert settings_of(elsewhere) == settings_of(options) != {}
    reseeded = stage_options(TINY, TINY.stages[0], replace(choices, seed=1), None)
    assert settings_of(reseeded) != settings_of(options)


def test_the_table_shows_every_stage(tmp_path: Path) -> None:
    """One line each; batches grow with the devices."""
    lines = stage_table(FULL, FULL.stages, RunChoices(tmp_path, num_devices=8)).splitlines()
    assert len(lines) == 10
    words = lines[1].split()
    assert words == [
        "1", "176x320-17", "random", "176x320", "17", "1", "17", "uniform", "encoded", "32", "10000", "10000",
        "0", "0", "no",
    ]  # fmt: skip
    assert "9 x V" in lines[6]
    assert "multi-6 " in lines[8]
    assert "90000" in lines[8]


class FakeTraining:
    """Stands in for the trainer: the weights of a stage say where they came from."""

    def __init__(self) -> None:
        self.trained: list[str] = []
        self.fails_in = ""

    def train_to_end(self, config, num_steps: int) -> Path:
        if config.timestamp == self.fails_in:
            raise KeyboardInterrupt
        self.trained.append(config.timestamp)
        return Path(config.pipeline.model.init_from)

    def export_weights(self, checkpoint: Path, config, codec_digest: str, output: Path) -> Path:
        before = checkpoint.read_text() if checkpoint.is_file() else "random"
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(f"{before} > {config.timestamp}")
        return output


@pytest.fixture
def fake(monkeypatch) -> FakeTraining:
    """The driver without the hours of training."""
    fake = FakeTraining()
    monkeypatch.setattr(run, "train_to_end", fake.train_to_end)
    monkeypatch.setattr(run, "export_weights", fake.export_weights)
    return fake


def curriculum(stages: str, choices: RunChoices, init_from: Path | None = None) -> Curriculum:
    return Curriculum("tiny", TINY.chosen(stages), choices, init_from)


@pytest.mark.slow
def test_stages_hand_on_their_weights(fake, data, dynamic_data, tmp_path) -> None:
    """Stage 8 starts from stage 6, not from the pruned 7; finished ones are skipped; all is recorded."""
    choices = RunChoices(tmp_path, data, dynamic_data)
    paths = curriculum("1-9", choices).run()
    names = [stage.name for stage in TINY.stages]
    assert fake.trained == names
    assert paths[-1].read_text() == " > ".join(["random", *names[:6], *names[7:]])
    assert paths[6].read_text().endswith("multi-6 > multi-6-prune")
    assert curriculum("1-9", choices).run() == paths
    assert fake.trained == names
    state = read_state(tmp_path, "tiny")
    for stage in TINY.stages[1:]:
        assert state.stages[stage.name].starts_from == state.finished(stage.starts_from)
    assert "--pipeline.model.decoder.use-time True" in state.stages["multi-6-dynamic"].command


def test_an_interrupted_curriculum_goes_on(fake, data, tmp_path) -> None:
    """At the stage that was not finished, whose record is kept from when it was begun."""
    choices = RunChoices(tmp_path, data)
    fake.fails_in = "352x640-49"
    with pytest.raises(KeyboardInterrupt):
        curriculum("1-5", choices).run()
    assert "352x640-49" in read_state(tmp_path, "tiny").stages
    assert read_state(tmp_path, "tiny").finished("352x640-49") is None
    fake.fails_in = ""
    curriculum("1-4", replace(choices, num_workers=5)).run()
    assert fake.trained == ["176x320-17", "176x320-49", "352x640-49", "704x1280-49"]


def test_other_settings_and_other_weights_are_refused(fake, data, tmp_path) -> None:
    """Named with what differs."""
    choices = RunChoices(tmp_path, data)
    fake.fails_in = "176x320-49"
    with pytest.raises(KeyboardInterrupt):
        curriculum("1-2", choices).run()
    fake.fails_in = ""
    with pytest.raises(ValueError, match=r"176x320-49 .* begun differently: machine.seed was 0, is 1"):
        curriculum("2", replace(choices, seed=1)).run()
    with pytest.raises(ValueError, match="holds a curriculum of scale tiny, now full is asked for"):
        Curriculum("full", FULL.chosen("1"), choices)
    weights = tmp_path / "weights/176x320-17.safetensors"
    learned = weights.read_text()
    weights.write_text("something else")
    with pytest.raises(ValueError, match="must hold what stage 176x320-17 learned"):
        curriculum("2", choices).run()
    # Neither by way of the record: the stage was begun with the first weights.
    path = tmp_path / "curriculum.json"
    content = json.loads(path.read_text())
    content["stages"]["176x320-17"]["weights"]["sha256"] = sha256(b"something else").hexdigest()
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="the weights it started from were"):
        curriculum("2", choices).run()
    weights.unlink()
    with pytest.raises(ValueError, match="found no file"):
        curriculum("1", choices).run()
    content["stages"]["176x320-17"]["weights"]["sha256"] = sha256(learned.encode()).hexdigest()
    path.write_text(json.dumps(content))
    weights.write_text(learned)
    curriculum("2", choices).run()


def test_missing_predecessors_and_data_are_named(fake, data, dynamic_data, tmp_path) -> None:
    """Before anything is trained."""
    given = tmp_path / "given.safetensors"
    given.write_text("weights of multi-6")
    choices = RunChoices(tmp_path, data, dynamic_data)
    with pytest.raises(ValueError, match="stage multi-6-dynamic starts from multi-6, which is neither"):
        curriculum("7-9", choices, given)
    with pytest.raises(FileNotFoundError, match="there are no weights at"):
        curriculum("1", choices, tmp_path / "nothing.safetensors")
    with pytest.raises(ValueError, match="train on dynamic scenes, found no --dynamic-data"):
        curriculum("1-9", replace(choices, dynamic_data=None))
    with pytest.raises(ValueError, match=r"--dynamic-data must name dynamic scenes, found .* stand still"):
        curriculum("1-9", replace(choices, dynamic_data=data))
    with pytest.raises(ValueError, match=r"--data must name static scenes, found .* scenes that move"):
        curriculum("1", replace(choices, data=dynamic_data))
    assert fake.trained == []


def test_weights_may_come_from_a_file(fake, dynamic_data, tmp_path) -> None:
    """In place of the predecessor's, for the first stage; static data is not needed then."""
    given = tmp_path / "lyra_static.pt"
    given.write_text("released")
    paths = curriculum("8-9", RunChoices(tmp_path / "out", None, dynamic_data), given).run()
    assert paths[-1].read_text() == "released > multi-6-dynamic > multi-6-dynamic-prune"


def test_damaged_state_is_named(tmp_path) -> None:
    """And not taken for an empty one."""
    (tmp_path / "curriculum.json").write_text('{"format": "lyra_ns curriculum 1"}')
    with pytest.raises(
        ValueError, match=r"curriculum.json must be the state of a curriculum .* found damage"
    ):
        read_state(tmp_path, "tiny")
    (tmp_path / "curriculum.json").write_text("[]")
    with pytest.raises(ValueError, match="found damage"):
        read_state(tmp_path, "tiny")


def test_two_drivers_do_not_share_a_folder(fake, data, tmp_path) -> None:
    """The second is told so."""
    choices = RunChoices(tmp_path, data)
    inside: list[str] = []

    def train_beside(config, num_steps: int) -> Path:
        with pytest.raises(ValueError, match="another process is training in"):
            curriculum("1", choices).run()
        inside.append(config.timestamp)
        return Path("none")

    run.train_to_end = train_beside  # restored by the fixture
    curriculum("1", choices).run()
    assert inside == ["176x320-17"]


def test_cut_off_checkpoints_do_not_count(tmp_path) -> None:
    """A process that dies while it saves leaves half a file beside the last whole one."""
    assert run.newest_checkpoint(tmp_path) is None
    whole = tmp_path / "step-000000009.ckpt"
    torch.save({"step": 9}, whole)
    (tmp_path / "step-000000010.ckpt").write_bytes(whole.read_bytes()[:-40])
    assert run.newest_checkpoint(tmp_path) == whole
    assert run.steps_of(whole) == 10


def test_exported_weights_are_those_of_the_checkpoint(data, tmp_path) -> None:
    """With the configuration they were trained with and the codec's fingerprint."""
    options = stage_options(TINY, TINY.stages[7], RunChoices(tmp_path, data, data), None)
    config = trainer_config_of(options)
    decoder = LatentGaussianDecoder(config.pipeline.model.decoder)
    nn.init.normal_(decoder.deconv.bias)
    state = {f"_model.decoder.{name}": value for name, value in decoder.state_dict().items()}
    torch.save({"pipeline": state}, tmp_path / "step-000000001.ckpt")
    output = tmp_path / "weights" / "stage.safetensors"
    found = load_decoder(run.export_weights(tmp_path / "step-000000001.ckpt", config, "abc", output))
    assert (found.config.use_time, found.codec_digest) == (True, "abc")
    assert torch.equal(found.deconv.bias, decoder.deconv.bias)


def test_a_static_decoder_starts_a_dynamic_one(data, tmp_path) -> None:
    """All tensors are there; the other way round times would be lost without a word."""
    options = stage_options(TINY, TINY.stages[0], RunChoices(tmp_path, data), None)
    config = trainer_config_of(options).pipeline.model.decoder
    static, dynamic = LatentGaussianDecoder(config), LatentGaussianDecoder(replace(config, use_time=True))
    load_initial_weights(dynamic, str(save_decoder(static, tmp_path / "static.safetensors")))
    assert torch.equal(dynamic.deconv.weight, static.deconv.weight)
    path = save_decoder(dynamic, tmp_path / "dynamic.safetensors")
    with pytest.raises(ValueError, match="another network"):
        load_initial_weights(static, str(path))
