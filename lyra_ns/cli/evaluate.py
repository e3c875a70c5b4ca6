"""`ns-lyra evaluate` and `ns-lyra photo-check`: how good a decoder is, in numbers and pictures."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from lyra_ns.options import DecoderChoice, check_height_and_width

if TYPE_CHECKING:
    from lyra_ns.data.store import LyraStore
    from lyra_ns.evaluation.runner import ProtocolConfig, SceneResult
    from lyra_ns.reconstruction import Reconstructor


@dataclass(kw_only=True)
class Evaluate(DecoderChoice):
    """Measure a decoder on held-out scenes and unseen camera paths, beside what needs no decoder."""

    data: Annotated[Path, tyro.conf.Positional]
    """Folder in the official layout, with rgb files."""
    num_scenes: int | None = None
    """Held-out scenes to measure, from the first; by default all."""
    num_trajectories: tuple[int, ...] = (1, 2, 3, 6)
    """Numbers of input trajectories, read in the official order 5, 0, 1, 2, 3, 4."""
    baselines: bool = True
    """Also measure the mean colour, the nearest input frame, and that frame moved by its true depth."""
    depth: bool = True
    """Compare depth too; the data must hold it. Without it frames cannot be moved by true depth either."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """JSON file to write."""

    def run(self) -> None:
        """Print the table; write the file if one is named."""
        from lyra_ns.data.open import held_out_names
        from lyra_ns.data.store import LyraStore
        from lyra_ns.evaluation.runner import ProtocolConfig, as_table, summary_rows

        if self.output is not None and self.output.suffix != ".json":
            raise ValueError(f"--output must end in .json, found {self.output.name!r}")
        self.check_decoder()
        if not self.num_trajectories or not all(1 <= number <= 6 for number in self.num_trajectories):
            raise ValueError(f"expected --num-trajectories from 1 to 6, found {self.num_trajectories}")
        store = LyraStore(self.data)
        names, chosen_by = held_out_names(store, self.num_scenes)
        reconstruct = self.reconstructor(store.spec)
        config = ProtocolConfig(
            num_trajectories=self.num_trajectories,
            baselines=self.baselines,
            depth=self.depth,
            render=self.render_settings(reconstruct),
        )
        print(f"{len(names)} scenes, {chosen_by}; {reconstruct.device}")
        results = list(self._results(reconstruct, store, names, config))
        rows = summary_rows([score for result in results for score in result.scores])
        print(as_table(rows))
        seconds = decoding_seconds(results)
        for number, value in seconds.items():
            print(f"{number} trajectories decoded in {value:.2f} s a scene")
        if self.output is not None:
            _write_json(self.output, self._report(reconstruct, store, names, config, rows, seconds))
            print(self.output)

    def _results(
        self, reconstruct: Reconstructor, store: LyraStore, names: list[str], config: ProtocolConfig
    ) -> Iterator[SceneResult]:
        """Results of all scenes under a progress bar."""
        from rich.progress import track

        from lyra_ns.data.open import stored_scene
        from lyra_ns.evaluation.runner import evaluate_scenes
        from lyra_ns.ops.lpips import load_lpips

        scenes = (stored_scene(store, name) for name in names)
        results = evaluate_scenes(reconstruct, scenes, load_lpips("alex"), config)
        yield from track(results, "held-out scenes", total=len(names) * len(config.num_trajectories))

    def _report(
        self,
        reconstruct: Reconstructor,
        store: LyraStore,
        names: list[str],
        config: ProtocolConfig,
        rows: list[dict[str, object]],
        seconds: dict[int, float],
    ) -> dict[str, Any]:
        from lyra_ns.environment import environment

        manifest = store.manifest
        return {
            "data": {
                "scenes": names,
                "codec": reconstruct.codec.spec.codec,
                "seed": manifest.seed if manifest else None,
                "versions": manifest.versions if manifest else None,
            },
            "decoder": {
                "checkpoint": self.checkpoint,
                "prune_ratio": self.prune_ratio,
                "config": asdict(reconstruct.decoder.config),
            },
            "protocol": asdict(config),
            "environment": environment(reconstruct.device),
            "seconds_per_scene": seconds,
            "rows": rows,
        }


def decoding_seconds(results: list[SceneResult]) -> dict[int, float]:
    """Median seconds from latents to Gaussians by number of input trajectories."""
    from statistics import median

    by_number: dict[int, list[float]] = {}
    for result in results:
        by_number.setdefault(result.batch.latents.shape[1], []).append(result.seconds)
    return {number: median(seconds) for number, seconds in by_number.items()}


@dataclass(kw_only=True)
class PhotoCheck(DecoderChoice):
    """Reconstruct a real photograph and compare with a real second one beside it (Middlebury's Motorcycle).

    The left photograph, moved along the six camera paths by its measured depth, is the input; the right one
    is the truth. Beside it stand one Gaussian per pixel by the depth that ships and by the measured one. The
    fitted unit of length is the one in which the decoder reproduces its own input best.
    """

    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("photo_check")
    """Folder for photo_check.json and photo_check.png."""
    height: int = 160
    """Image height in pixels, a multiple of 16."""
    width: int = 256
    """Image width in pixels, a multiple of 16."""
    num_frames: int = 17
    """Frames per trajectory, 8k + 1."""

    def run(self) -> None:
        """Print the numbers beside floor and reference line; write them and the picture."""
        from lyra_ns.codec import VideoLatentSpec
        from lyra_ns.environment import environment
        from lyra_ns.evaluation.photo_check import check_photo, photo_sheet
        from lyra_ns.ops.lpips import load_lpips
        from lyra_ns.pictures import save_picture

        check_height_and_width(self.height, self.width)
        reconstruct = self.reconstructor(VideoLatentSpec("linear"))
        settings = self.render_settings(reconstruct)
        check = check_photo(
            reconstruct, settings, load_lpips("alex"), self.height, self.width, self.num_frames
        )
        print(check.as_table())
        report = {
            "checkpoint": self.checkpoint,
            "prune_ratio": self.prune_ratio,
            "render": asdict(settings),
            "num_gaussians": check.fitted.num_gaussians,
            "fitted_units_per_metre": check.fitted.units_per_metre,
            "units_tried": check.units_tried,
            "scores": {name: asdict(scores) for name, scores in check.scores.items()},
            "environment": environment(reconstruct.device),
        }
        _write_json(self.output / "photo_check.json", report)
        save_picture(photo_sheet(check), self.output / "photo_check.png")
        print(self.output / "photo_check.png")


def _write_json(path: Path, content: dict[str, Any]) -> None:
    from lyra_ns.data.atomic import write_whole

    write_whole(path, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())
