"""Teachers by name: what is loaded, what is passed on, and choices that cannot be served."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lyra_ns.depth.base import PlaneDepth
from lyra_ns.teachers import gen3c, sana_wm, wan_vace
from lyra_ns.teachers.registry import TeacherChoice, load_teacher
from lyra_ns.teachers.replay import ReplayTeacher
from lyra_ns.teachers.warp import WarpTeacher
from tests.helpers.checked_types import unchecked
from tests.helpers.small_dataset import write_small_dataset


def test_choosing_loads_no_torch() -> None:
    code = "import sys, lyra_ns.teachers.registry; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_teachers_without_weights(tmp_path: Path) -> None:
    teacher = load_teacher(TeacherChoice(), "cpu")
    assert isinstance(teacher, WarpTeacher)
    assert teacher.codec.spec.codec == "linear"
    root = write_small_dataset(tmp_path, num_scenes=1, num_trajectories=1)
    replay = load_teacher(TeacherChoice(teacher="replay", clips=root, codec="linear", device="cpu"))
    assert isinstance(replay, ReplayTeacher)
    assert list(replay.clips) == [("a", 0)]
    with pytest.raises(ValueError, match="no manifest that names the codec"):
        load_teacher(TeacherChoice(teacher="replay", clips=root), "cpu")


@pytest.mark.parametrize(
    ("name", "room", "function"),
    [("wan-vace", wan_vace, "load_wan_vace"), ("sana-wm", sana_wm, "load_sana_wm")],
)
def test_video_models_get_what_was_chosen(
    name: Any, room: Any, function: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []
    monkeypatch.setattr(room, function, lambda *arguments: given.extend(arguments))
    choice = TeacherChoice(teacher=name, weights="owner/name", steps=7, memory="low", dtype="float16")
    load_teacher(choice, "cpu")
    weights, codec, device, dtype, memory, settings = given
    assert (weights, codec.spec.codec, device) == ("owner/name", "linear", torch.device("cpu"))
    assert (dtype, memory, settings.steps) == (torch.float16, "low", 7)
    assert settings.guidance == type(settings)().guidance


def test_gen3c_gets_what_was_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    made = SimpleNamespace()
    monkeypatch.setattr(
        gen3c, "load_gen3c", lambda *arguments, **named: given.extend([*arguments, named]) or made
    )
    depth = PlaneDepth()
    choice = TeacherChoice(
        teacher="gen3c", weights="folder", guidance=0.0, samples_at_once=3, text_cache=Path("texts")
    )
    assert load_teacher(choice, "cpu", depth) is made
    assert given[:4] == ["folder", torch.device("cpu"), None, "balanced"]
    assert given[4] == gen3c.Gen3CSettings(guidance=0.0, samples_at_once=3)
    assert given[5:] == [depth, {"text_encoder": None, "text_cache": Path("texts")}]


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"teacher": "sora"}, "teacher must be one of warp, replay, gen3c, wan-vace, sana-wm, found 'sora'"),
        ({"teacher": "gen3c"}, "teacher gen3c needs weights: give their folder, or take the teacher warp"),
        ({"teacher": "replay"}, "teacher replay needs clips: give the folder"),
        ({"teacher": "gen3c", "weights": "folder", "codec": "linear"}, "latents of its own tokenizer, found"),
        ({"teacher": "wan-vace", "weights": "owner/name", "dtype": "half"}, "dtype must be one of auto"),
        ({"codec": "wrong"}, "codec must be 'linear', 'learned:FILE' or 'cosmos:PATH', found 'wrong'"),
    ],
)
def test_choices_that_cannot_be_served_are_told(choice: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message), unchecked():
        load_teacher(TeacherChoice(**choice), "cpu")


def test_weights_and_clips_that_are_not_there_are_told(tmp_path: Path) -> None:
    for name in ("gen3c", "wan-vace", "sana-wm"):
        choice = TeacherChoice(teacher=name, weights=str(tmp_path / "none"))
        with pytest.raises(FileNotFoundError, match=f"teacher {name}: expected a folder"):
            load_teacher(choice, "cpu")
    with pytest.raises(FileNotFoundError, match="do not exist: give a folder of clips"):
        load_teacher(TeacherChoice(teacher="replay", clips=tmp_path / "none"), "cpu")
