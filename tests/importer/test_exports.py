"""``torch.onnx.export(optimize=False)`` keeps every BatchNorm: folded, and inserted into."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import bnpass
from bnpass.errors import InputError
from tests.helpers import Norm, build


class Net(nn.Module):
    """Layers without biases, of each kind, with BatchNorms behind them or not."""

    def __init__(self, norms: bool) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, bias=False), nn.ConvTranspose2d(8, 6, 2, bias=False)
        self.c, self.d = nn.Conv2d(6, 6, 3, groups=6, bias=False), nn.Linear(6, 5, bias=False)
        wanted = (nn.BatchNorm2d(8), nn.BatchNorm2d(6), nn.BatchNorm2d(6), nn.BatchNorm1d(5))
        self.norms = nn.ModuleList(n if norms else nn.Identity() for n in wanted)
        self.e = nn.Linear(5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer, norm in zip((self.a, self.b, self.c), self.norms, strict=False):
            x = norm(layer(x)).relu()
        return self.e(self.norms[3](self.d(x.mean((2, 3)))).tanh())


def exported(norms: bool, folder: Path) -> onnx.ModelProto:
    torch.manual_seed(0)
    net = Net(norms).eval()
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            assert module.running_mean is not None
            module.weight.data.uniform_(0.5, 1.5)
            module.running_mean.normal_()
    path = folder / "m.onnx"
    torch.onnx.export(net, (torch.randn(2, 3, 8, 8),), path, dynamo=True, optimize=False,
                      verbose=False)  # fmt: skip
    return onnx.load(path)


def count(model: onnx.ModelProto) -> int:
    return sum(node.op_type == "BatchNormalization" for node in model.graph.node)


def test_all_fold(tmp_path: Path) -> None:
    model = exported(True, tmp_path)
    assert count(model) == 4
    assert any(node.op_type == "CastLike" for node in model.graph.node)
    assert count(bnpass.fold(model)) == 0


def test_all_are_inserted_and_fold_again(tmp_path: Path) -> None:
    model = exported(False, tmp_path)
    inserted = bnpass.insert(model, init="preserve")
    assert count(inserted) == 4
    assert count(bnpass.fold(inserted)) == 0


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_a_bias_that_is_no_vector(value: float) -> None:
    """The zeros of a 3-d convolution without a bias have one axis too many."""
    model = build(
        """(float[N, 3, 5, 5, 5] x) => (float[N, 4, 3, 3, 3] y)
        { c = Conv(x, W, B)  d = BN(c, n)  y = Relu(d) }""",
        {"W": (4, 3, 3, 3, 3), "B": (4,), "n": Norm(4)},
    )
    bias = next(t for t in model.graph.initializer if t.name == "B")
    bias.CopyFrom(onnx.numpy_helper.from_array(np.full((4, 2), value, np.float32), "B"))
    if value:
        with pytest.raises(InputError, match=r"bias 'B' of .* has the shape \[4, 2\]"):
            bnpass.fold(model, plan_only=True)
        return
    folded = bnpass.fold(model, verify=False)
    assert count(folded) == 0
    shapes = {t.name: list(t.dims) for t in folded.graph.initializer}
    assert shapes[folded.graph.node[0].input[2]] == [4]
