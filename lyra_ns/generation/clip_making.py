"""Which teacher makes the clips of a scene, whose codec stands behind them, and the clips."""

from __future__ import annotations

from collections.abc import Callable

import torch

from lyra_ns.codec import load_codec
from lyra_ns.codec.interface import VideoCodec
from lyra_ns.decoder import LatentGaussianDecoder
from lyra_ns.generation.decoder_input import is_small
from lyra_ns.generation.scene_plan import ScenePlan
from lyra_ns.generation.settings import GenerateSettings
from lyra_ns.generation.teachers.interface import CameraVideoTeacher, TeacherClip, TeacherRequest
from lyra_ns.generation.teachers.registry import TeacherChoice, TeacherName, load_teacher
from lyra_ns.memory_limits import DoesNotFit
from lyra_ns.reconstruction import check_codec

OnStep = Callable[[int, int], None]


def teacher_name(settings: GenerateSettings) -> TeacherName:
    """The teacher that is meant: with weights and no name it is GEN3C, without both it is the warp."""
    if settings.teacher != "auto":
        return settings.teacher
    return "gen3c" if settings.weights else "warp"


def load_chosen_teacher(
    settings: GenerateSettings, decoder: LatentGaussianDecoder, device: torch.device
) -> tuple[CameraVideoTeacher, VideoCodec]:
    """The teacher, and the codec whose latents the decoder reads; the teacher's own wherever that fits.

    ValueError, FileNotFoundError or ModuleNotFoundError where something is not there or does not fit.
    """
    name = teacher_name(settings)
    if name == "warp" and settings.weights:
        raise ValueError("--teacher warp has no weights: leave --weights out, or take --teacher gen3c")
    codec_name = settings.codec
    if codec_name == "auto" and name in ("warp", "wan-vace", "sana-wm"):
        codec_name = _codec_of_decoder(settings, decoder)
    choice = TeacherChoice(
        teacher=name,
        weights=settings.weights,
        clips=settings.clips,
        codec=codec_name,
        steps=settings.steps,
        guidance=settings.guidance,
        samples_at_once=settings.samples_at_once,
        text_encoder=settings.text_encoder,
        text_cache=settings.text_cache,
        memory=settings.memory,
        dtype=settings.precision,
    )
    teacher = load_teacher(choice, device)
    return teacher, _fitting_codec(teacher.codec, decoder, device)


def make_clips(
    teacher: CameraVideoTeacher, plan: ScenePlan, settings: GenerateSettings, on_step: OnStep | None = None
) -> list[TeacherClip]:
    """The clips of a planned scene, one per path; a prompt that made the picture is not told again."""
    is_told = settings.input is not None
    requests = [
        TeacherRequest(
            scene=plan.name,
            trajectory=path.trajectory,
            cameras=path.cameras,
            image=plan.image,
            cache=plan.cache if teacher.needs_cache else None,
            prompt=settings.prompt if is_told else None,
            negative_prompt=settings.negative_prompt if is_told else None,
            seed=settings.seed,
        )
        for path in plan.paths
    ]
    try:
        return teacher.generate(requests, on_step)
    except torch.cuda.OutOfMemoryError as error:
        raise DoesNotFit(
            f"the GPU ran out of memory while {teacher.name} made the clips: end other programs on it, give "
            "--memory low, or smaller clips (--num-frames, --height, --width)"
        ) from error


def _codec_of_decoder(settings: GenerateSettings, decoder: LatentGaussianDecoder) -> str:
    """Name of the codec in whose latents the clips of a teacher without a codec of its own are stored."""
    if decoder.codec_digest == load_codec("linear").spec.digest or is_small(decoder.config):
        return "linear"
    raise ValueError(
        f"the decoder {settings.checkpoint} reads latents of the Cosmos tokenizer, and teacher "
        f"{teacher_name(settings)} has none: give --codec cosmos:FOLDER"
    )


def _fitting_codec(given: VideoCodec, decoder: LatentGaussianDecoder, device: torch.device) -> VideoCodec:
    """The teacher's codec, or the linear one for a decoder that was trained on its latents."""
    linear = load_codec("linear")
    wants_linear = decoder.codec_digest == linear.spec.digest or (
        not decoder.codec_digest and is_small(decoder.config)
    )
    if wants_linear and given.spec.digest != linear.spec.digest:
        return linear.to(device)
    # Here, because clips take long and would be lost.
    check_codec(decoder, given.spec)
    return given
