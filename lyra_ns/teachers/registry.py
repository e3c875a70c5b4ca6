"""Teachers by name. Importing this loads no torch, so that commands can show their options at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from lyra_ns.device import MemoryName

if TYPE_CHECKING:
    import torch

    from lyra_ns.codec.base import VideoCodec
    from lyra_ns.depth.base import DepthEstimator
    from lyra_ns.teachers.base import CameraVideoTeacher

TeacherName = Literal["warp", "replay", "gen3c", "wan-vace", "sana-wm"]
"""Teachers that `load_teacher` knows."""
PrecisionName = Literal["auto", "bfloat16", "float16", "float32"]


@dataclass(kw_only=True)
class TeacherChoice:
    """A source of clips and how to run it."""

    teacher: TeacherName = "warp"
    """warp moves what the picture shows and fills the rest smoothly, without a network; replay reads clips
    from disk; gen3c, wan-vace and sana-wm are video models, whose weights must be given."""
    weights: str | None = None
    """Folder with the weights of a video model, as `ns-lyra convert` or save_pretrained wrote them; a hub id
    owner/name for wan-vace and sana-wm."""
    clips: Path | None = None
    """Folder of the clips of replay: a data set, videos with camera files, or rgb/ pose/ intrinsics/."""
    codec: str = "auto"
    """Codec of the latents: linear, cosmos:PATH, or auto, which is GEN3C's own tokenizer, the codec of the
    data set (replay), or linear."""
    steps: int | None = None
    """Steps of a video model; None takes its own number."""
    guidance: float | None = None
    """Guidance of a video model; None takes its own. GEN3C's 1 is 2 in the usual count, and 0 switches it
    off."""
    samples_at_once: int = 1
    """Clips that GEN3C makes together; more need more memory."""
    text_encoder: str | None = None
    """Folder or hub id of T5 for GEN3C's prompts; None takes the one in the folder of the weights."""
    text_cache: Path | None = None
    """Folder in which GEN3C's text embeddings are kept from run to run; None keeps none."""
    memory: MemoryName = "balanced"
    """How much of a video model stays on the GPU: fast, balanced or low."""
    dtype: PrecisionName = "auto"
    """Precision of a video model; auto is bfloat16 on a GPU and float32 on a CPU."""
    device: str = "auto"
    """auto, cpu or cuda."""


def load_teacher(
    choice: TeacherChoice,
    device: torch.device | str | None = None,
    depth: DepthEstimator | None = None,
) -> CameraVideoTeacher:
    """The chosen teacher on `device` (None: the device that the choice names).

    `depth` is what GEN3C needs for videos of more than one chunk. ValueError for a choice that does not fit,
    FileNotFoundError without weights or clips, ModuleNotFoundError without a package: in one sentence each.
    """
    from lyra_ns.device import chosen_device

    if choice.teacher not in get_args(TeacherName):
        raise ValueError(
            f"teacher must be one of {', '.join(get_args(TeacherName))}, found {choice.teacher!r}: "
            "choose one of them"
        )
    device = chosen_device(choice.device if device is None else str(device))
    if choice.teacher == "warp":
        return _warp(choice, device)
    if choice.teacher == "replay":
        return _replay(choice, device)
    if choice.weights is None:
        raise ValueError(
            f"teacher {choice.teacher} needs weights: give their folder, or take the teacher warp, which "
            "needs none"
        )
    if choice.teacher == "gen3c":
        return _gen3c(choice, choice.weights, device, depth)
    return _other(choice, choice.weights, device)


def _warp(choice: TeacherChoice, device: torch.device) -> CameraVideoTeacher:
    from lyra_ns.teachers.warp import WarpTeacher

    return WarpTeacher(_codec(choice, device), device)


def _replay(choice: TeacherChoice, device: torch.device) -> CameraVideoTeacher:
    from lyra_ns.teachers.replay import ReplayTeacher, codec_of_clips

    if choice.clips is None:
        raise ValueError(
            "teacher replay needs clips: give the folder of a data set or of videos with camera files"
        )
    codec = codec_of_clips(choice.clips, device) if choice.codec == "auto" else _codec(choice, device)
    return ReplayTeacher(choice.clips, codec, device)


def _gen3c(
    choice: TeacherChoice, weights: str, device: torch.device, depth: DepthEstimator | None
) -> CameraVideoTeacher:
    from lyra_ns.teachers.gen3c import Gen3CSettings, load_gen3c

    if choice.codec != "auto":
        raise ValueError(
            f"gen3c makes latents of its own tokenizer, found codec {choice.codec!r}: give codec auto"
        )
    settings = Gen3CSettings(samples_at_once=choice.samples_at_once, **_given(choice))
    return load_gen3c(
        weights, device, _dtype(choice), choice.memory, settings, depth,
        text_encoder=choice.text_encoder, text_cache=choice.text_cache,
    )  # fmt: skip


def _other(choice: TeacherChoice, weights: str, device: torch.device) -> CameraVideoTeacher:
    """Teachers whose latents are made by the codec from the frames of another video model."""
    codec, dtype = _codec(choice, device), _dtype(choice)
    if choice.teacher == "wan-vace":
        from lyra_ns.teachers.wan_vace import WanVaceSettings, load_wan_vace

        vace = WanVaceSettings(**_given(choice))
        return load_wan_vace(weights, codec, device, dtype, choice.memory, vace)
    from lyra_ns.teachers.sana_wm import SanaWmSettings, load_sana_wm

    return load_sana_wm(weights, codec, device, dtype, choice.memory, SanaWmSettings(**_given(choice)))


def _given(choice: TeacherChoice) -> dict[str, Any]:
    """Steps and guidance, where they were chosen."""
    given = {"steps": choice.steps, "guidance": choice.guidance}
    return {name: value for name, value in given.items() if value is not None}


def _codec(choice: TeacherChoice, device: torch.device) -> VideoCodec:
    """The codec by its name; auto is the one that ships."""
    from lyra_ns.codec import load_codec

    return load_codec("linear" if choice.codec == "auto" else choice.codec, device)


def _dtype(choice: TeacherChoice) -> torch.dtype | None:
    """The precision by its name; None for auto."""
    import torch

    if choice.dtype not in get_args(PrecisionName):
        raise ValueError(
            f"dtype must be one of {', '.join(get_args(PrecisionName))}, found {choice.dtype!r}: choose one"
        )
    return None if choice.dtype == "auto" else getattr(torch, choice.dtype)
