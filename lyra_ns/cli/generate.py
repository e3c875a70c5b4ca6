"""`ns-lyra generate`: from an image, a video, a prompt or latents to a scene, in one command."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import Field, field, fields, make_dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import docstring_parser
import tyro

from lyra_ns.generation.settings import GenerateSettings

DESCRIPTION = """Turn an image, a video, ViPE's output, a prompt or ready latents into a scene of Gaussians.

Writes OUTPUT/scene.ply, scene.html, video.mp4, contact_sheet.png, latents/ (in the official layout) and
record.json, all of them or none. Without weights of a video model the picture is moved by its depth along
the camera paths: what it does not show is then a smooth guess, and nothing is generated.
"""
GROUPS: Mapping[str, tuple[str, ...]] = {
    "scene": ("input", "output", "prompt", "overwrite", "dry_run"),
    "size": ("crop", "height", "width", "num_frames"),
    "camera_path": ("trajectory", "num_trajectories", "seed", "distance_factor"),
    "depth": ("depth", "fov", "intrinsics"),
    "video_input": ("clip", "frames_from", "fps", "static_camera", "first_frame_only", "times"),
    "refinement": ("refine_steps", "refine_seconds"),
    "teacher": (
        *("teacher", "weights", "clips", "steps", "guidance", "negative_prompt", "memory", "num_gpus"),
        *("samples_at_once", "precision", "text_encoder", "text_cache", "text_to_image"),
    ),
    "decoder": ("checkpoint", "config", "prune_ratio", "device"),
    "expert": (
        *("units", "depth_units", "centre_quantile", "pose_scale", "paths_follow", "look_at", "path_length"),
        *("codec", "plucker_dtype", "ray_dtype", "response"),
    ),
}
"""Fields of the settings by the box of the help that shows them, in the order of use; experts' come last."""


def run(self: Any) -> None:
    """Make the scene; stages, their seconds and the files are printed."""
    from lyra_ns.generation.run import generate

    generate(settings_of(self))


def settings_of(command: Any) -> GenerateSettings:
    """The settings that a parsed command holds in groups, with a folder to write if none is named."""
    given = {
        name: getattr(getattr(command, title), name) for title, names in GROUPS.items() for name in names
    }
    if given["output"] is None:
        given["output"] = default_output(given["input"])
    return GenerateSettings(**given)


def default_output(source: Path | None) -> Path:
    """A folder beside the reader, named after the file, or after the folder with `_scene` behind it."""
    if source is None:
        return Path("scene")
    name = source.expanduser().resolve()
    return Path(f"{name.name}_scene" if name.is_dir() or not name.suffix else name.stem)


def _command() -> type:
    """The command's dataclass: a field for each group, whose fields are those of the settings."""
    return make_dataclass(
        "Generate",
        [(title, Annotated[_group(title), tyro.conf.OmitArgPrefixes]) for title in GROUPS],
        namespace={"run": run, "__doc__": DESCRIPTION, "__module__": __name__},
        kw_only=True,
    )


def _group(title: str) -> type:
    own = {found.name: found for found in fields(GenerateSettings)}
    kinds = get_type_hints(GenerateSettings, include_extras=True)
    kinds["output"] = Annotated[Path | None, tyro.conf.arg(aliases=["-o"])]
    texts = {
        found.arg_name: found.description or ""
        for kind in reversed(GenerateSettings.__mro__[:-1])
        for found in docstring_parser.parse_from_object(kind).params
    }
    texts["output"] += " By default one that is named after the input."
    return make_dataclass(
        f"{title}_options",
        [(name, kinds[name], _field(own[name], " ".join(texts[name].split()))) for name in GROUPS[title]],
        kw_only=True,
    )


def _field(own: Field[Any], text: str) -> Any:
    default = None if own.name == "output" else own.default
    return field(default=default, metadata={"help": text})


Generate = _command()
"""The command as tyro reads it."""
