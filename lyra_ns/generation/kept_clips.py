"""Clips of a run that is not finished, kept in its output folder, where the same command finds them again.

    OUTPUT/unfinished/TRAJECTORY.safetensors    latents, frames, depth, cameras; what the clip was made from

A file appears whole as soon as its clip is made and holds it bit for bit, so that a run that goes on writes
what one that was never interrupted would have written.

Shape letters: S frames of the source, L frames of a clip, H W image.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional

from lyra_ns.cameras import CameraPath
from lyra_ns.data.files import write_whole
from lyra_ns.generation.depth.choice import is_depth_file
from lyra_ns.generation.new_folders import no_new_empty_folders
from lyra_ns.generation.output_folder import unfinished_folder
from lyra_ns.generation.scene_plan import ScenePlan
from lyra_ns.generation.settings import GenerateSettings
from lyra_ns.generation.teachers.interface import CameraVideoTeacher, TeacherClip, TeacherRequest
from lyra_ns.generation.teachers.text_embeddings import encoder_digest

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
