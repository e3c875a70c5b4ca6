"""One batch trained by one process or shared by several, for tests of both: loss, gradients, weights."""

from __future__ import annotations

from dataclasses import fields, replace
from functools import reduce
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from nerfstudio.data.scene_box import SceneBox
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from lyra_ns.cameras import CameraPath
from lyra_ns.codec import load_codec
from lyra_ns.data.types import SceneBatch
from lyra_ns.plugin.model import LyraModel
from lyra_ns.plugin.optimizers import DecoderAdamWConfig
from tests.helpers.wall_scenes import tiny_pipeline_config

LARGEST_CHANGE = 0.02
"""How far two steps of Adam at this rate can move a weight."""
NUM_STEPS = 2
"""Steps taken: the second one fails where the first left gradients waiting."""


def batch_of(root: Path, num_scenes: int) -> SceneBatch:
    """A batch of that many scenes of the data at `root`, of which the first knows little depth."""
    config = tiny_pipeline_config(root)
    config.datamanager.scenes_per_step = num_scenes
    pipeline = config.setup(device="cpu", test_mode="val")
    batch = pipeline.model.complete(pipeline.datamanager.next_train(0)[1]["pending"])
    batch.target_depth[0, :, :30] = 0
    return batch


def scenes_of(batch: SceneBatch, here: slice) -> SceneBatch:
    """Some of the scenes of a batch."""
    picked: dict[str, Any] = {}
    for field in fields(batch):
        value = getattr(batch, field.name)
        picked[field.name] = value[here] if isinstance(value, Tensor | CameraPath | list) else value
    return replace(batch, **picked)


def moved_batch(batch: SceneBatch, device: torch.device) -> SceneBatch:
    """The batch on `device`."""
    values = {
        name: value.to(device)
        for name, value in vars(batch).items()
        if isinstance(value, Tensor | CameraPath)
    }
    return replace(batch, **values)


def tiny_model(device: torch.device) -> LyraModel:
    """A static model that prunes, always with the same weights; its time embeddings are never used."""
    config = tiny_pipeline_config(None, prune_ratio=0.5, prune_from_step=0, warm_start_steps=0).model
    config.decoder.trunk_dtype = "float32"
    torch.manual_seed(0)
    box = SceneBox(torch.tensor([[-1.0, -1, -1], [1, 1, 1]]))
    metadata = {"latents": load_codec("linear").spec}
    model = LyraModel(config, scene_box=box, num_train_data=1, metadata=metadata).to(device)
    model.train()
    return model


def train_steps(model: LyraModel, module: torch.nn.Module, batch: SceneBatch) -> dict[str, Any]:
    """Losses and gradients of each step and the weights after them; `module` is the model or wraps it."""
    config = DecoderAdamWConfig(lr=1e-2)
    optimizer = config.setup(list(model.decoder.parameters()))
    losses, gradients = [], []
    for step in range(NUM_STEPS):
        model.update_to_step(step)
        optimizer.zero_grad()
        terms = model.get_loss_dict(module(None, {"scenes": batch}), {"scenes": batch})
        loss = reduce(torch.add, terms.values())
        loss.backward()
        losses.append(loss.detach().cpu())
        named = model.decoder.named_parameters()
        gradients.append({name: p.grad.cpu().clone() for name, p in named if p.grad is not None})
        torch.nn.utils.clip_grad_norm_(model.decoder.parameters(), config.max_norm)
        optimizer.step()
    weights = {name: value.cpu() for name, value in model.decoder.state_dict().items()}
    return {"losses": torch.stack(losses), "gradients": gradients, "weights": weights}


def train_share(rank: int, world_size: int, backend: str, folder: str) -> None:
    """Train on this process's scenes of FOLDER/batch.pt, wrapped as by nerfstudio; writes RANK.pt."""
    path = Path(folder)
    dist.init_process_group(
        backend, init_method=f"file://{path / 'meeting'}", rank=rank, world_size=world_size
    )
    device = torch.device("cpu") if backend == "gloo" else torch.device("cuda", rank)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    batch: SceneBatch = torch.load(path / "batch.pt", weights_only=False)
    num_scenes = len(batch.names) // world_size
    own = moved_batch(scenes_of(batch, slice(rank * num_scenes, (rank + 1) * num_scenes)), device)
    model = tiny_model(device)
    device_ids = None if backend == "gloo" else [rank]
    wrapped = DistributedDataParallel(model, device_ids=device_ids, find_unused_parameters=True)
    torch.save(train_steps(model, wrapped, own), path / f"{rank}.pt")
    dist.destroy_process_group()


def compare_weights(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """The same weights, where the gradients of all steps agree to a twentieth of themselves.

    Adam divides a gradient by its own size: where that is less than the runs differ, only a sign counts.
    """
    num_compared = 0
    for name in expected["gradients"][0]:
        weight = expected["weights"][name]
        steps = [
            (of_found[name], of_expected[name])
            for of_found, of_expected in zip(found["gradients"], expected["gradients"], strict=True)
        ]
        agrees = reduce(
            torch.logical_and, ((a - b).abs() <= b.abs() / 20 for a, b in steps), weight == weight
        )
        num_compared += int(agrees.sum())
        torch.testing.assert_close(
            found["weights"][name][agrees], weight[agrees], rtol=1e-2, atol=LARGEST_CHANGE / 10
        )
    assert num_compared > sum(gradient.numel() for gradient in expected["gradients"][0].values()) / 2


def compare_with_one_process(folder: Path, batch: SceneBatch, backend: str, tolerance: float) -> None:
    """Two processes with half of the batch each find loss, gradients and weights of one with all of it."""
    torch.save(batch, folder / "batch.pt")
    torch.multiprocessing.spawn(train_share, (2, backend, str(folder)), nprocs=2)
    device = torch.device("cpu") if backend == "gloo" else torch.device("cuda", 0)
    model = tiny_model(device)
    alone = train_steps(model, model, moved_batch(batch, device))
    shares = [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert not torch.equal(shares[0]["losses"], shares[1]["losses"])
    close = {"rtol": tolerance, "atol": tolerance}
    torch.testing.assert_close((shares[0]["losses"] + shares[1]["losses"]) / 2, alone["losses"], **close)
    for share in shares:
        for found, expected in zip(share["gradients"], alone["gradients"], strict=True):
            largest = max(float(gradient.abs().max()) for gradient in expected.values())
            used = {name: gradient for name, gradient in found.items() if name in expected}
            assert used.keys() == expected.keys()
            assert all(not gradient.any() for name, gradient in found.items() if name not in expected)
            torch.testing.assert_close(used, expected, rtol=tolerance, atol=tolerance * largest)
        compare_weights(share, alone)
    # What the ranks hold is the same to the bit, or they would drift apart.
    torch.testing.assert_close(shares[0]["weights"], shares[1]["weights"], rtol=0, atol=0)
