"""Which teacher makes the clips of a scene, whose codec stands behind them, and the clips."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from lyra_ns.codec import load_codec
from lyra_ns.codec.interface import VideoCodec
from lyra_ns.data.video_files import VideoSize
from lyra_ns.decoder import LatentGaussianDecoder
from lyra_ns.generation.camera_paths import LookAt
from lyra_ns.generation.clip_sizes import MULTIPLE, ClipSizes
from lyra_ns.generation.decoder_input import FULL_SIZE, is_small, usual_size
from lyra_ns.generation.kept_clips import KeptClips
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
    teacher = load_teacher(chosen_teacher(settings, decoder), device)
    return teacher, _fitting_codec(teacher.codec, decoder, device)


def chosen_teacher(settings: GenerateSettings, decoder: LatentGaussianDecoder) -> TeacherChoice:
    """How the teacher is loaded; ValueError if nothing says in which codec it makes its latents."""
    name, codec = teacher_name(settings), settings.codec
    if codec == "auto" and name in ("warp", "wan-vace", "sana-wm"):
        codec = _codec_of_decoder(settings, decoder)
    return TeacherChoice(
        teacher=name,
        weights=settings.weights,
        clips=settings.clips,
        codec=codec,
        steps=settings.steps,
        guidance=settings.guidance,
        samples_at_once=settings.samples_at_once,
        text_encoder=settings.text_encoder,
        text_cache=settings.text_cache,
        memory=settings.memory,
        dtype=settings.precision,
    )


def clip_requests(plan: ScenePlan, settings: GenerateSettings, needs_cache: bool) -> list[TeacherRequest]:
    """What to ask the teacher for, one per path; a prompt that made the picture is not told again."""
    is_told = settings.input is not None
    return [
        TeacherRequest(
            scene=plan.name,
            trajectory=path.trajectory,
            cameras=path.cameras,
            image=plan.image,
            cache=plan.cache if needs_cache else None,
            prompt=settings.prompt if is_told else None,
            negative_prompt=settings.negative_prompt if is_told else None,
            seed=settings.seed,
        )
        for path in plan.paths
    ]


def make_clips(
    teacher: CameraVideoTeacher,
    requests: Sequence[TeacherRequest],
    kept: KeptClips | None = None,
    num_at_once: int = 1,
    on_step: OnStep | None = None,
) -> list[TeacherClip]:
    """The clips that were asked for; those that `kept` has are read, and each new one is kept there.

    DoesNotFit if the GPU is too small; what was made until then is kept.
    """
    try:
        if kept is None:
            return teacher.generate(requests, on_step)
        there = kept.there(requests)
        clips = {trajectory: kept.read(trajectory) for trajectory in there}
        groups = grouped([request for request in requests if request.trajectory not in there], num_at_once)
        for number, group in enumerate(groups):
            made = teacher.generate(group, _steps_of_group(on_step, number, len(groups)))
            for request, clip in zip(group, made, strict=True):
                kept.write(request, clip)
                clips[request.trajectory] = clip
        return [clips[request.trajectory] for request in requests]
    except torch.cuda.OutOfMemoryError as error:
        raise no_memory(teacher.name) from error


def grouped(requests: Sequence[TeacherRequest], num_at_once: int) -> list[Sequence[TeacherRequest]]:
    """The requests in groups that are made together."""
    return [requests[start : start + num_at_once] for start in range(0, len(requests), num_at_once)]


def no_memory(name: str) -> DoesNotFit:
    """What is told when the GPU is too small for a teacher."""
    return DoesNotFit(
        f"the GPU ran out of memory while {name} made the clips: end other programs on it, give --memory "
        "low, or smaller clips (--num-frames, --height, --width)"
    )


def _steps_of_group(on_step: OnStep | None, number: int, num_groups: int) -> OnStep | None:
    """Counts the steps of one group, all of which have about as many, among those of all."""
    if on_step is None:
        return None
    return lambda done, total: on_step(number * total + done, num_groups * total)


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
    if not wants_linear and not decoder.codec_digest and given.spec.digest == linear.spec.digest:
        raise ValueError(
            "the decoder reads latents of the Cosmos tokenizer, found those of the codec linear: give "
            "--codec cosmos:FOLDER, or a decoder that was trained on latents of linear (--checkpoint)"
        )
    check_codec(decoder, given.spec)
    return given


def look_at_of(settings: GenerateSettings) -> LookAt:
    """GEN3C's poses for GEN3C, exact ones for all others, unless the settings say which."""
    if settings.look_at != "auto":
        return settings.look_at
    return "gen3c" if teacher_name(settings) == "gen3c" else "exact"


def paths_follow_near(settings: GenerateSettings, decoder: LatentGaussianDecoder) -> bool:
    """Whether named paths are as long as the near depth asks for, or as in the official data."""
    if settings.paths_follow != "auto":
        return settings.paths_follow == "near"
    is_official = teacher_name(settings) == "gen3c" or not is_small(decoder.config)
    return not is_official and settings.depth_units != "centre_quantile"


def clip_title(settings: GenerateSettings, is_stored: bool) -> str:
    """What the clips of the contact sheet are called."""
    if is_stored:
        return "stored clip"
    return "clip (warped)" if teacher_name(settings) == "warp" else f"clip ({teacher_name(settings)})"


def clip_sizes(settings: GenerateSettings, decoder: LatentGaussianDecoder) -> ClipSizes:
    """Frames, height and width of the clips: as asked for, else as decoder, teacher and picture have them.

    GEN3C and Lyra's own decoders know one size; ValueError for what no video of theirs can have.
    """
    usual = FULL_SIZE if teacher_name(settings) == "gen3c" else usual_size(decoder.config)
    size = VideoSize(
        settings.num_frames or usual.num_frames,
        settings.height or usual.height,
        settings.width or usual.width,
    )
    if size.height % MULTIPLE or size.width % MULTIPLE or min(size.height, size.width) < MULTIPLE:
        raise ValueError(
            f"expected --height and --width in multiples of {MULTIPLE}, found {size.height} and {size.width}"
        )
    if size.num_frames < 9 or size.num_frames % 8 != 1:
        raise ValueError(f"expected --num-frames of 8k + 1 (9, 17 ... 121), found {size.num_frames}")
    is_asked_for = settings.height is not None or settings.width is not None
    return ClipSizes(size, usual != FULL_SIZE and not settings.crop and not is_asked_for)


def decoder_size(settings: GenerateSettings, decoder: LatentGaussianDecoder, clips: VideoSize) -> VideoSize:
    """The size at which clips of another codec are encoded again for the decoder: all of them, if it can."""
    usual = usual_size(decoder.config)
    return ClipSizes(usual, usual != FULL_SIZE and not settings.crop).of_picture(clips.height, clips.width)
