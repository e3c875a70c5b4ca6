"""A short training of the small decoder, and its result as an object: `python examples/train_tiny.py DATA`.

The same as `ns-train lyra-tiny --data DATA` with a few settings changed; any of nerfstudio's can be.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

import lyra_ns
from lyra_ns.method_configs.tiny import lyra_tiny


def train(
    data: Annotated[Path, tyro.conf.Positional],
    output: Path = Path("outputs"),
    num_steps: int = 500,
    quick: bool = False,
) -> None:
    """Train the decoder that ships on DATA and write OUTPUT/decoder; `quick` trains a toy from scratch."""
    config: Any = deepcopy(lyra_tiny.config)
    config.pipeline.datamanager.data = data
    config.output_dir, config.vis = output, "tensorboard"
    config.max_num_iterations = num_steps
    config.set_timestamp()
    if quick:
        model = config.pipeline.model
        model.init_from, model.warm_start_steps = "none", 0
        model.decoder = replace(
            model.decoder, width=64, depth=2, pattern="1M1T", num_heads=2, state_size=8, head_dim=16
        )
        config.pipeline.datamanager.num_workers = 0
    torch.manual_seed(config.machine.seed)
    trainer = config.setup(local_rank=0, world_size=1)
    trainer.setup()
    trainer.train()
    lyra = lyra_ns.Lyra(trainer.pipeline.model.decoder.eval())
    print(f"{lyra.save_pretrained(output / 'decoder')}: load it with lyra_ns.Lyra.from_pretrained")


if __name__ == "__main__":
    tyro.cli(train)
