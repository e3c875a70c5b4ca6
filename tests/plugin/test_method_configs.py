"""The entry points that every ns-* command loads: they must come up wherever nerfstudio itself does."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint

import pytest
import torch
from nerfstudio.plugins.registry_dataparser import DataParserSpecification
from nerfstudio.plugins.types import MethodSpecification

IMPORT_WITH_PARTS_HIDDEN = """
import importlib.abc, sys
import nerfstudio.engine.trainer, nerfstudio.pipelines.base_pipeline  # these need gsplat by themselves

HIDDEN = ("gsplat", "mamba_ssm", "causal_conv1d", "diffusers", "transformers", "lpips", "av", "plyfile")

class Hider(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in HIDDEN:
            raise ImportError(f"{name} is hidden")

for name in list(sys.modules):
    if name.partition(".")[0] in HIDDEN or name == "nerfstudio.models.splatfacto":
        del sys.modules[name]
sys.meta_path.insert(0, Hider())
import lyra_ns.method_configs.lyra, lyra_ns.method_configs.tiny, lyra_ns.dataparsers.lyra
"""

IMPORT_DATA_PARSER_FIRST = """
import sys
import lyra_ns.dataparsers.lyra
TOO_EARLY = (
    "data.datamanagers", "pipelines", "engine.trainer", "plugins.types",
    "configs.dataparser_configs", "configs.method_configs",
)
early = [name for name in sys.modules if name.startswith(tuple("nerfstudio." + part for part in TOO_EARLY))]
assert not early, early
"""


@pytest.mark.slow
@pytest.mark.parametrize("program", [IMPORT_WITH_PARTS_HIDDEN, IMPORT_DATA_PARSER_FIRST])
def test_entry_modules_import_without_optional_parts(program: str) -> None:
    """With optional packages hidden, and the data parser without what is half imported at that moment."""
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("lyra_ns.method_configs.lyra:lyra", MethodSpecification),
        ("lyra_ns.method_configs.tiny:lyra_tiny", MethodSpecification),
        ("lyra_ns.dataparsers.lyra:lyra_data", DataParserSpecification),
    ],
)
def test_entry_points_are_specifications(value: str, kind: type) -> None:
    """Nerfstudio skips anything else with a warning."""
    assert isinstance(EntryPoint("name", value, "group").load(), kind)


def test_both_methods_explain_a_lack_of_memory() -> None:
    """Their trainer is ours."""
    from lyra_ns.method_configs.lyra import lyra
    from lyra_ns.method_configs.tiny import lyra_tiny
    from lyra_ns.plugin.trainer import LyraTrainer

    assert lyra.config._target is lyra_tiny.config._target is LyraTrainer


def test_lyra_is_the_papers_network_and_training() -> None:
    """Sizes and constants are the paper's; the device is what is there.

    Source: docs/reference/decoder.md, "Configuration", and docs/reference/lyra_training.md, "Losses" and
    "Optimiser".
    """
    from lyra_ns.decoder.model import LatentGaussianDecoder
    from lyra_ns.method_configs.lyra import lyra

    model, group = lyra.config.pipeline.model, lyra.config.optimizers["decoder"]
    with torch.device("meta"):
        decoder = LatentGaussianDecoder(model.decoder)
    assert sum(parameter.numel() for parameter in decoder.parameters()) == 32_753_996
    assert (model.loss.mse, model.loss.lpips, model.loss.depth, model.loss.opacity) == (1.0, 0.5, 0.05, 0.1)
    assert (model.loss.lpips_net, model.warm_start_steps, model.init_from) == ("vgg", 0, "none")
    assert (group["optimizer"].lr, group["optimizer"].max_norm) == (1e-4, 1.0)
    assert (group["scheduler"].warmup_steps, group["scheduler"].decay) == (100, "constant")
    assert lyra.config.machine.device_type == ("cuda" if torch.cuda.is_available() else "cpu")
    # nerfstudio's mixed precision is float16.
    assert not lyra.config.mixed_precision


def test_tiny_has_the_stabilisers() -> None:
    """The switches of docs/reference/small_scale.md, "Stabilisers", are on, and it starts from what ships."""
    from lyra_ns.method_configs.tiny import lyra_tiny

    model = lyra_tiny.config.pipeline.model
    head = model.decoder.head
    assert model.init_from == "shipped"
    assert model.warm_start_steps > 0
    assert (head.near, head.far, head.distance_law, head.scale_law) == (1.0, 30.0, "logarithmic", "footprint")
    assert head.identity_rotation
    assert model.decoder.input_statistics
    assert model.loss.lpips_net == "alex"
