"""`ns-lyra curriculum` on small sample scenes: all nine stages, killed in the middle, one stage by hand."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lyra_ns.curriculum.run import newest_checkpoint
from lyra_ns.decoder.checkpoints import load_decoder
from lyra_ns.synthetic import write_sample_data

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(600)]

BIN = Path(sys.executable).parent
"""Where this environment's commands are."""
ENVIRONMENT = os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHONWARNINGS": "ignore", "COLUMNS": "200"}
FIRST = "176x320-17"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with static and dynamic sample scenes."""
    root = tmp_path_factory.mktemp("curriculum")
    for name in ("static", "dynamic"):
        write_sample_data(
            root / name,
            1,
            num_held_out=1,
            height=64,
            width=96,
            dynamic=name == "dynamic",
            device="cpu",
            num_workers=1,
        )
    return root


def command(root: Path, output: Path, stages: str) -> list[str]:
    """`ns-lyra curriculum` on the sample scenes, whichever checkout is installed."""
    return [
        *(sys.executable, "-m", "lyra_ns.cli.main", "curriculum", "--scale", "tiny", "--stages", stages),
        *("--data", str(root / "static"), "--dynamic-data", str(root / "dynamic")),
        *("--output", str(output), "--num-workers", "0", "--device", "cpu"),
    ]


def run(arguments: list[str]) -> str:
    """What a command prints; it must succeed."""
    result = subprocess.run(
        arguments, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=400
    )
    assert result.returncode == 0, result.stdout[-4000:]
    return result.stdout


@pytest.fixture(scope="module")
def whole(root: Path) -> Path:
    """The folder of all nine stages, run without interruption."""
    run(command(root, root / "whole", "1-9"))
    return root / "whole"


def weights(folder: Path, stage: str) -> dict[str, torch.Tensor]:
    """What a stage learned."""
    return load_file(folder / "weights" / f"{stage}.safetensors")


def changed(folder: Path, stage: str, before: str) -> set[str]:
    """Parts of the network that a stage changed, by the first part of their names."""
    old, new = weights(folder, before), weights(folder, stage)
    assert old.keys() == new.keys()
    return {name.split(".")[0] for name in new if not torch.equal(old[name], new[name])}


def test_all_nine_stages(whole: Path) -> None:
    """Each learned something from its predecessor's weights; times only where there are some."""
    stages = json.loads((whole / "curriculum.json").read_text())["stages"]
    assert len(stages) == 9
    assert all(record["weights"] for record in stages.values())
    for name, record in stages.items():
        before = record["starts_from"] and Path(record["starts_from"]["file"]).stem
        assert (before is None) == (name == FIRST)
        if before is None:
            continue
        parts = changed(whole, name, before)
        assert {"patch_embed", "patch_plucker_embed", "deconv", "enc_norm"} <= parts
        assert ("patch_time_embed" in parts) == ("patch_time_embed_tgt" in parts) == ("dynamic" in name)
    assert stages["multi-6-dynamic"]["starts_from"] == stages["multi-6"]["weights"]
    final = load_decoder(whole / "weights/multi-6-dynamic-prune.safetensors")
    assert final.config.use_time
    assert final.codec_digest
    assert all(value.isfinite().all() for value in final.state_dict().values())


def test_a_killed_run_goes_on_to_the_same_weights(root: Path, whole: Path) -> None:
    """Killed in the middle of a stage, without a chance to tidy up."""
    folder = root / "killed"
    checkpoints = folder / "runs/lyra" / FIRST / "nerfstudio_models"
    arguments = command(root, folder, "1-2")
    process = subprocess.Popen(
        arguments, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    until = time.monotonic() + 200
    while time.monotonic() < until and process.poll() is None and newest_checkpoint(checkpoints) is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    record = json.loads((folder / "curriculum.json").read_text())["stages"][FIRST]
    assert record["weights"] is None
    printed = run(arguments)
    assert "Done loading Nerfstudio checkpoint" in printed
    for stage in (FIRST, "176x320-49"):
        torch.testing.assert_close(weights(folder, stage), weights(whole, stage))
    assert run(arguments).count("finished before") == 2


def test_a_stage_by_hand_gives_the_same_weights(root: Path, whole: Path) -> None:
    """The command that the driver keeps, typed into another folder."""
    stage = "multi-6-dynamic-prune"
    words = shlex.split(json.loads((whole / "curriculum.json").read_text())["stages"][stage]["command"])
    words[words.index("--output-dir") + 1] = str(root / "by_hand")
    assert words[0] == "ns-train"
    run([sys.executable, str(BIN / "ns-train"), *words[1:]])
    (checkpoint,) = (root / "by_hand/runs/lyra" / stage / "nerfstudio_models").iterdir()
    found = torch.load(checkpoint, weights_only=True)["pipeline"]
    for name, value in weights(whole, stage).items():
        torch.testing.assert_close(found[f"_model.decoder.{name}"], value)
