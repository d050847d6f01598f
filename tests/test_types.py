"""The public functions as a type checker sees them from a user's script."""

from __future__ import annotations

import json
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


def mypy(script, home):
    """Numbers of the lines with errors."""
    cache = ["--cache-dir", str(home / ".mypy_cache")]
    done = processes.run(
        [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", *cache, str(script)],
        capture_output=True, text=True, check=False, cwd=home,
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return {int(line.split(":")[1]) for line in done.stdout.splitlines() if ": error:" in line}


def pyright(script, home):
    """The same; a pyright that cannot run (it needs node) skips the test."""
    settings = {"typeCheckingMode": "standard", "extraPaths": [str(home)]}
    (script.parent / "pyrightconfig.json").write_text(json.dumps(settings))
    done = processes.run(
        [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable,
         "-p", str(script.parent)], capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode not in (0, 1) or not done.stdout.startswith("{"):
        pytest.skip(f"pyright does not run here: {done.stderr.strip()[-200:]}")
    found = json.loads(done.stdout)
    assert found["summary"]["filesAnalyzed"] == 1
    return {entry["range"]["start"]["line"] + 1 for entry in found["generalDiagnostics"]
            if entry["severity"] == "error"}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("checker", [mypy, pyright], ids=["mypy", "pyright"])
def test_a_users_script_under_a_type_checker(checker, tmp_path):
    pytest.importorskip(checker.__name__)
    home = Path(bnpass.__file__).parents[1]
    script = tmp_path / "user.py"
    script.write_text(SCRIPT)
    assert not checker(script, home)
    script.write_text(SCRIPT + WRONG)
    lines = len(SCRIPT.splitlines())
    assert checker(script, home) == {lines + i for i in (2, 3, 4)}
