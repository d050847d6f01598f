"""The public functions as a type checker sees them from a user's script."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import bnpass
from tests import processes

SCRIPT = """
from pathlib import Path

import onnx
import torch
from torch import nn

import bnpass
from bnpass.passes.fold import FoldPlan
from bnpass.passes.sites import InsertPlan

x = torch.zeros(2, 3)
net = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
a: nn.Module = bnpass.insert(net, x)
b: torch.fx.GraphModule = bnpass.insert(torch.fx.symbolic_trace(net), (x,), init="fresh")
c: onnx.ModelProto = bnpass.insert("model.onnx", last=True)
d: Path = bnpass.insert("model.onnx", output="out.onnx", force=True)
e: InsertPlan = bnpass.insert(net, {"input": x}, plan_only=True)
f: nn.Module = bnpass.fold(a)
g: FoldPlan = bnpass.fold(Path("model.onnx"), plan_only=True)
h: nn.Sequential = bnpass.calibrate(net, [x])
i: nn.Module = bnpass.strip(net, ("dropout",), x)
"""

WRONG = """
j: int = bnpass.insert(net, x, plan_only=True)
k: FoldPlan = bnpass.fold(net)
bnpass.insert(net, x, inti="fresh")
"""


@pytest.mark.slow
def test_a_users_script_under_mypy_strict(tmp_path):
    pytest.importorskip("mypy")
    home = Path(bnpass.__file__).parents[1]
    script = tmp_path / "user.py"

    def checked(text):
        script.write_text(text)
        cache = ["--cache-dir", str(home / ".mypy_cache")]
        return processes.run(
            [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", *cache,
             str(script)], capture_output=True, text=True, check=False, cwd=home,
        )  # fmt: skip

    right = checked(SCRIPT)
    assert right.returncode == 0, right.stdout
    wrong = checked(SCRIPT + WRONG)
    lines = len(SCRIPT.splitlines())
    found = {line.split(":")[1] for line in wrong.stdout.splitlines() if ": error:" in line}
    assert found == {str(lines + i) for i in (2, 3, 4)}, wrong.stdout
