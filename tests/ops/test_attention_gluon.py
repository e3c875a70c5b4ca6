"""The attention kernel that overlaps products with exponentials is compiled as it is meant to run.

Gluon has no interpreter, so its values are seen on a GPU alone (tests/gpu/test_attention_gpu.py).
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

triton = pytest.importorskip("triton")
pytest.importorskip("triton.experimental.gluon.language.nvidia.hopper")

from lyra_ns.ops.attention_gluon import OVERLAPPED_KEYS  # noqa: E402
from lyra_ns.ops.attention_triton import suits_overlap  # noqa: E402


def compiled_for_hopper() -> Any:
    """The kernel for a GPU that need not be there."""
    from triton.backends.compiler import GPUTarget
    from triton.experimental.gluon import language as gl
    from triton.experimental.gluon._runtime import GluonASTSource

    from lyra_ns.ops import attention_gluon
    from lyra_ns.ops.attention_gluon import attend_overlapped_kernel

    def descriptor(rows: int) -> str:
        layout = gl.NVMMASharedLayout.get_default_for([rows, 64], gl.bfloat16)
        return f"tensordesc<bf16[{rows},64],{layout!r}>"

    tensors = {"out": "*bf16", "marked": "*i32", "queries": descriptor(attention_gluon.ROWS)}
    tensors |= dict.fromkeys(("keys", "values"), descriptor(OVERLAPPED_KEYS))
    tensors |= dict.fromkeys(("num_tokens", "num_heads", "num_tiles"), "i32")
    constants = {"NUM_SLOTS": attention_gluon.NUM_SLOTS, "REGISTERS": attention_gluon.REGISTERS}
    names = attend_overlapped_kernel.arg_names
    signature = {name: "constexpr" if name in constants else tensors.get(name, "*fp32") for name in names}
    source = GluonASTSource(attend_overlapped_kernel, signature, constants)
    options = {"num_warps": 4, "maxnreg": attention_gluon.REGISTERS}
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)


@pytest.mark.slow
def test_products_stay_in_flight(tmp_path: Path) -> None:
    """No register is spilled, one product is left in flight at waits, and the assembler keeps it so."""
    from lyra_ns.ops.attention_gluon import GROUPS

    kernel = compiled_for_hopper()
    ptx = kernel.asm["ptx"]
    waits = re.findall(r"wgmma.wait_group.sync.aligned\s+1;", ptx)
    assert len(waits) == GROUPS.value, "in each group's loop"
    (tmp_path / "kernel.ptx").write_text(ptx)
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
    files = [tmp_path / "kernel.ptx", "-o", tmp_path / "kernel.cubin"]
    run = subprocess.run([tool, "-v", "-arch", "sm_90a", *files], capture_output=True, text=True, check=True)
    assert "serialized" not in run.stderr, run.stderr
    assert "0 bytes spill stores" in run.stderr, run.stderr
    assert kernel.metadata.shared <= 227 * 1024


def test_takes_whole_tiles_on_a_gpu_alone() -> None:
    """Elsewhere the kernel of attention.py computes everything."""
    tokens = torch.zeros(1, OVERLAPPED_KEYS, 2, 64, dtype=torch.bfloat16)
    assert not suits_overlap(tokens, tokens)
