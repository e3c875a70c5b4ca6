"""The clips of a scene: which teacher makes them, whose codec stands behind them, and where they are kept.

    OUTPUT/unfinished/TRAJECTORY.safetensors    latents, frames, depth, cameras; what the clip was made from

The same command finds clips of a run that is not finished again. A file appears whole as soon as its clip is
made and holds it bit for bit, so that a run that goes on writes what one that was never interrupted would
have written. Several processes may share the work, each with a GPU and a teacher of its own. This process is
one of them; each keeps the clips that it makes, and all are read from there in the end. The workers are those
of `ns-lyra make-data`.

Shape letters: S frames of the source, L frames of a clip, H W image.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional

from lyra_ns.camera_paths import LookAt
from lyra_ns.cameras import CameraPath
from lyra_ns.codec import load_codec
from lyra_ns.codec.base import VideoCodec, VideoLatentSpec
from lyra_ns.data.atomic import no_new_empty_folders, write_whole
from lyra_ns.data.video import VideoSize
from lyra_ns.decoder.model import LatentGaussianDecoder
from lyra_ns.depth.registry import is_depth_file
from lyra_ns.generation.decoder_input import FULL_SIZE, is_small, usual_size
from lyra_ns.generation.folder import unfinished_folder
from lyra_ns.generation.inputs import MULTIPLE, ClipSizes
from lyra_ns.generation.plan import ScenePlan
from lyra_ns.generation.settings import GenerateSettings
from lyra_ns.make_data.plan import Job, PlannedScene
from lyra_ns.make_data.workers import DoJob, ProcessWorker, ThreadWorker, Worker, run_jobs, visible_gpus
from lyra_ns.memory import DoesNotFit
from lyra_ns.reconstruction import check_codec
from lyra_ns.teachers.base import CameraVideoTeacher, TeacherClip, TeacherRequest, cache_on
from lyra_ns.teachers.registry import TeacherChoice, TeacherName, load_teacher
from lyra_ns.teachers.text_embeddings import encoder_digest

logger = logging.getLogger(__name__)

NOT_IN_CLIPS = frozenset({
    "checkpoint", "config", "prune_ratio", "codec", "plucker_dtype", "ray_dtype", "response", "device",
    "input", "output", "units", "trajectory", "num_trajectories", "times", "samples_at_once", "text_cache",
    "memory", "num_gpus", "dry_run", "overwrite", "refine_steps", "refine_seconds",
})  # fmt: skip
"""Settings of other stages, of how clips are made, or that are compared by what follows from them."""
TOLERANCE = 1e-4
"""Estimated depth, and cameras that follow from it, may differ by such a share between two runs on a GPU."""
COMPARED = ("camera_to_world", "intrinsics", "source_depth")
"""Tensors that are compared in this way."""
DEPTH_CELLS = 8
"""Estimated depth is compared by its means over so many cells along each side."""


@dataclass(frozen=True)
class KeptClips:
    """Where the clips of a run are kept, and what they must have been made from."""

    folder: Path
    """OUTPUT/unfinished."""
    made_from: dict[str, Any]
    """What decides a clip beside its cameras and the estimated depth, by names that users know."""
    depth: Float[Tensor, "S rows columns"]
    """Means of the depth."""
    replaces: bool
    """Whether clips that were made from something else are made anew; otherwise they are refused."""

    @property
    def num_files(self) -> int:
        """How many clips lie in the folder."""
        return sum(1 for path in self.folder.glob("[!.]*.safetensors"))

    def there(self, requests: Sequence[TeacherRequest]) -> set[int]:
        """Trajectories whose clips are there.

        ValueError if one was made from something else and may not be replaced. Files of those that are made
        anew, and damaged ones, are deleted.
        """
        return {request.trajectory for request in requests if self._is_there(request)}

    def read(self, trajectory: int) -> TeacherClip:
        """A clip that is there."""
        with safe_open(self._path(trajectory), "pt") as file:
            values = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping
            notes = json.loads(file.metadata()["notes"])
        return TeacherClip(values["z"], values["video"], values.get("depth"), notes)

    def write(self, request: TeacherRequest, clip: TeacherClip) -> None:
        """Keeps a clip."""
        values = {
            "z": clip.z,
            "video": clip.video,
            "camera_to_world": request.cameras.camera_to_world,
            "intrinsics": request.cameras.intrinsics,
            "source_depth": self.depth,
        }
        if clip.depth is not None:
            values["depth"] = clip.depth
        content = {name: value.detach().cpu().contiguous() for name, value in values.items()}
        words = {"made_from": json.dumps(self.made_from), "notes": json.dumps(clip.notes)}
        with no_new_empty_folders(self.folder):
            write_whole(self._path(request.trajectory), save(content, words))

    def _path(self, trajectory: int) -> Path:
        return self.folder / f"{trajectory}.safetensors"

    def _is_there(self, request: TeacherRequest) -> bool:
        path = self._path(request.trajectory)
        if not path.is_file():
            return False
        try:
            with safe_open(path, "pt") as file:
                values = {name: file.get_tensor(name) for name in COMPARED}
                made_from = json.loads(file.metadata()["made_from"])
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            logger.warning("clip %s is damaged (%s): it is made anew", path, error)
            path.unlink()
            return False
        told = "; ".join(self._differences(request, made_from, values))
        if told and not self.replaces:
            raise ValueError(
                f"{self.folder} holds clips of an unfinished run that were made otherwise ({told}): give the "
                "same settings to go on with them, --overwrite to make them anew, or another output folder"
            )
        if told:
            logger.warning("clip %s was made otherwise (%s): it is made anew", path, told)
            path.unlink()
        return not told

    def _differences(
        self, request: TeacherRequest, made_from: dict[str, Any], values: dict[str, Tensor]
    ) -> list[str]:
        """In what a clip on disk was made otherwise, in words."""
        now = json.loads(json.dumps(self.made_from))
        names = [name for name in {**made_from, **now} if made_from.get(name) != now.get(name)]
        differences = [f"{name} was {made_from.get(name)}, now {now.get(name)}" for name in names]
        if not _is_close(values["source_depth"], self.depth, self.depth.abs().max()):
            differences.append("the depth is another one")
        if not _are_close(values, request.cameras):
            differences.append(f"path {request.trajectory} is another one")
        return differences


def kept_clips(
    settings: GenerateSettings, plan: ScenePlan, teacher: CameraVideoTeacher, device: torch.device
) -> KeptClips | None:
    """Where the clips of a planned scene are kept; None for a teacher that reads them from disk anyway."""
    if teacher.name == "replay":
        return None
    cameras = plan.paths[0].cameras
    chosen = {key: value for key, value in asdict(settings).items() if key not in NOT_IN_CLIPS}
    chosen |= {"height": cameras.height, "width": cameras.width, "num_frames": cameras.shape[0]}
    chosen |= {"teacher": teacher.name, "weights": _folder_digest(settings.weights)}
    chosen |= {"text_encoder": _folder_digest(settings.text_encoder)}
    made_from = {f"--{name.replace('_', '-')}": _plain(value) for name, value in chosen.items()}
    made_from |= {
        "scene": plan.name,
        "picture": hashlib.sha256(plan.frames.rgb.numpy().tobytes()).hexdigest()[:12],
        "depth file": _file_digest(Path(settings.depth)) if is_depth_file(settings.depth) else None,
        "codec": teacher.codec.spec.digest,
        "device": device.type,
    }
    depth = functional.adaptive_avg_pool2d(plan.depth[:, None].float(), DEPTH_CELLS)[:, 0]
    return KeptClips(unfinished_folder(settings.output), made_from, depth, settings.overwrite)


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def _file_digest(path: Path) -> str:
    return hashlib.sha256(path.expanduser().read_bytes()).hexdigest()[:12]


def _folder_digest(location: str | None) -> str | None:
    """A fingerprint of a folder's files, one level of folders below included; of a hub id the id itself."""
    root = Path(location or "").expanduser()
    if not location or not root.is_dir():
        return location
    folders = [root, *sorted(entry for entry in root.iterdir() if entry.is_dir())]
    digests = " ".join(encoder_digest(str(folder)) for folder in folders)
    return hashlib.sha256(digests.encode()).hexdigest()[:12]


def _are_close(values: dict[str, Tensor], cameras: CameraPath) -> bool:
    """Whether stored cameras are those of the path, but for the rounding of estimated depth."""
    poses, other = cameras.camera_to_world.cpu(), values["camera_to_world"]
    extent = (poses[:, :3, 3] - poses[:1, :3, 3]).abs().max()
    return (
        poses.shape == other.shape
        and _is_close(other[:, :3, :3], poses[:, :3, :3], 1.0)
        and _is_close(other[:, :3, 3], poses[:, :3, 3], extent)
        and _is_close(values["intrinsics"], cameras.intrinsics.cpu(), cameras.width)
    )


def _is_close(a: Tensor, b: Tensor, unit: Tensor | float) -> bool:
    return a.shape == b.shape and bool(((a - b).abs() <= TOLERANCE * unit + 1e-12).all())


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


def check_num_gpus(num_gpus: int, device: torch.device) -> None:
    """ValueError if there are not so many GPUs; on the CPU every number of processes is possible."""
    if num_gpus == 1 or device.type != "cuda":
        return
    if str(device) != "cuda":
        raise ValueError(
            f"--num-gpus {num_gpus} chooses the GPUs itself, found --device {device}: leave --device out"
        )
    found = len(visible_gpus())
    if found < num_gpus:
        raise ValueError(
            f"--num-gpus {num_gpus} needs as many GPUs that this process may use, found {found}: give a "
            "smaller number"
        )


def make_shared_clips(
    teacher: CameraVideoTeacher,
    choice: TeacherChoice,
    requests: Sequence[TeacherRequest],
    kept: KeptClips,
    num_gpus: int,
    device: torch.device,
    on_step: OnStep | None = None,
) -> list[TeacherClip]:
    """The clips that were asked for, made by `num_gpus` processes; those that `kept` has are not made again.

    `choice` is how the other processes load what this one has in `teacher`. A clip is the same whoever makes
    it. ValueError with the reason if one cannot be made: no further one is begun then, and those that others
    are making are finished and kept.
    """
    there = kept.there(requests)
    missing = [request for request in requests if request.trajectory not in there]
    groups = grouped(missing, choice.samples_at_once)
    workers = _workers(teacher, choice, requests, kept, min(num_gpus, len(groups)), device)
    failures: list[str] = []
    for number, result in enumerate(run_jobs(workers, _jobs(groups, failures))):
        if result.failure is not None:
            failures.append(result.failure)
        if on_step is not None:
            on_step(number + 1, len(groups))
    if failures:
        raise no_memory(teacher.name) if "OutOfMemoryError" in failures[0] else ValueError(failures[0])
    return [kept.read(request.trajectory) for request in requests]


@dataclass(frozen=True)
class TeacherStage:
    """What another process is started with."""

    choice: TeacherChoice
    """How it loads its teacher."""
    requests: bytes
    """All requests, as torch.save writes them: shared memory is small in containers."""
    kept: KeptClips
    """Where it keeps its clips."""

    def start(self, device: torch.device) -> DoJob:
        """Loads the teacher."""
        # Not from a file: the process that started this one made them, and pickles this stage to it anyway.
        requests = torch.load(io.BytesIO(self.requests), weights_only=False)
        return _makes(load_teacher(self.choice, device), requests, self.kept)


@dataclass(frozen=True)
class LoadedStage:
    """This process, which has its teacher already."""

    teacher: CameraVideoTeacher
    """The teacher."""
    requests: Sequence[TeacherRequest]
    """All requests."""
    kept: KeptClips
    """Where it keeps its clips."""

    def start(self, device: torch.device) -> DoJob:
        """Has nothing to load."""
        return _makes(self.teacher, self.requests, self.kept)


def _makes(teacher: CameraVideoTeacher, requests: Sequence[TeacherRequest], kept: KeptClips) -> DoJob:
    by_number = {request.trajectory: request for request in requests}

    def make(job: Job) -> VideoLatentSpec:
        asked = [by_number[trajectory] for trajectory in job.trajectories]
        for request, clip in zip(asked, teacher.generate(asked), strict=True):
            kept.write(request, clip)
        return teacher.codec.spec

    return make


def _workers(
    teacher: CameraVideoTeacher,
    choice: TeacherChoice,
    requests: Sequence[TeacherRequest],
    kept: KeptClips,
    count: int,
    device: torch.device,
) -> list[Worker]:
    """Processes for all GPUs but the first, and this process."""
    stored = io.BytesIO()
    if count > 1:
        torch.save([_on_cpu(request) for request in requests], stored)
    stage = TeacherStage(choice, stored.getvalue(), kept)
    gpus = visible_gpus() if device.type == "cuda" else []
    others = [ProcessWorker(stage, device.type, gpus[number] if gpus else None) for number in range(1, count)]
    return [*others, ThreadWorker(LoadedStage(teacher, requests, kept), str(device))]


def _on_cpu(request: TeacherRequest) -> TeacherRequest:
    return request if request.cache is None else replace(request, cache=cache_on(request.cache, "cpu"))


def _jobs(groups: Sequence[Sequence[TeacherRequest]], failures: Sequence[str]) -> Iterator[Job]:
    """A job for each group, until something fails."""
    for group in groups:
        if failures:
            return
        numbers = tuple(request.trajectory for request in group)
        name = group[0].scene
        yield Job(PlannedScene(name, "image", name, name, numbers, "train"), numbers)
