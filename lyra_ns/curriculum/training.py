"""One stage through nerfstudio's own trainer, from wherever it was interrupted to its last step."""

from __future__ import annotations

import gc
import inspect
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lyra_ns.any_decoder import nerfstudio_tensors
from lyra_ns.checkpoints import save_decoder
from lyra_ns.decoder import LatentGaussianDecoder

if TYPE_CHECKING:
    from nerfstudio.engine.trainer import TrainerConfig


def train_to_end(config: TrainerConfig, num_steps: int) -> Path:
    """The checkpoint after `num_steps` steps; what an earlier run of the same stage did is not repeated.

    ValueError if the run ends before, for example by Ctrl-C; a second call goes on from there.
    """
    folder = config.get_checkpoint_dir()
    newest = newest_checkpoint(folder)
    num_done = 0 if newest is None else steps_of(newest)
    if num_done < num_steps:
        config.load_checkpoint = newest
        config.max_num_iterations = num_steps - (num_done if _counts_from_start() else 0)
        _launch(config)
        newest = newest_checkpoint(folder)
        num_done = 0 if newest is None else steps_of(newest)
    if newest is None or num_done != num_steps:
        raise ValueError(
            f"the stage must end after {num_steps} steps, found {num_done} in {folder}: run the same command "
            "again to go on"
        )
    return newest


def newest_checkpoint(folder: Path) -> Path | None:
    """The last whole step-*.ckpt of a run; one that was cut off while it was written does not count."""
    found = sorted(folder.glob("step-*.ckpt"), key=steps_of, reverse=True)
    # torch.save ends with the directory of a zip file.
    return next((path for path in found if zipfile.is_zipfile(path)), None)


def steps_of(checkpoint: Path) -> int:
    """Steps that were made until this checkpoint, which carries the number of the last one in its name."""
    return int(checkpoint.stem.removeprefix("step-")) + 1


def export_weights(checkpoint: Path, config: TrainerConfig, codec_digest: str, output: Path) -> Path:
    """Writes the decoder of a checkpoint as one safetensors file, whole or not at all; returns the path."""
    model: Any = config.pipeline.model
    decoder = LatentGaussianDecoder(model.decoder)
    decoder.load_state_dict(nerfstudio_tensors(checkpoint))
    decoder.codec_digest = codec_digest
    return save_decoder(decoder, output)


def _counts_from_start() -> bool:
    """Whether nerfstudio counts --max-num-iterations from the resumed step on (1.1.5), or from step 0."""
    from nerfstudio.engine.trainer import Trainer

    return "self._start_step + num_iterations" in inspect.getsource(Trainer.train)


def _launch(config: TrainerConfig) -> None:
    """What `ns-train` does with a configuration, in this process; several devices get one each."""
    from nerfstudio.scripts.train import launch, train_loop
    from nerfstudio.utils import profiler, writer

    # Module-level lists that expect one run per process.
    writer.EVENT_WRITERS.clear()
    writer.GLOBAL_BUFFER.clear()
    profiler.PROFILER.clear()
    config.save_config()
    machine = config.machine
    try:
        launch(
            main_func=train_loop,
            num_devices_per_machine=machine.num_devices,
            device_type=machine.device_type,
            num_machines=machine.num_machines,
            machine_rank=machine.machine_rank,
            dist_url=machine.dist_url,
            config=config,
        )
    finally:
        # The trainer holds itself in cycles; the next stage needs its memory.
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
