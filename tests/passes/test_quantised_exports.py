"""Networks that torch trained with fake quantisation, and exported: BN folds or is gone."""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

import bnpass
from tests.helpers import feeds, run

CODES = "QuantizeLinear", "DequantizeLinear"
X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Two blocks of Conv, BN, ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(n, 8, 3, padding=1) for n in (3, 8))
        self.bn1, self.bn2 = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()
        with torch.no_grad():
            for norm in (self.bn1, self.bn2):
                norm.weight.normal_()
                norm.bias.normal_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu1(self.bn1(self.conv1(x)))
        return self.relu2(self.bn2(self.conv2(x)))


def trained(net: nn.Module) -> nn.Module:
    optimizer = torch.optim.SGD(net.parameters(), 0.01)
    for _ in range(3):
        loss = net(X).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net


def kinds(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def eager(fuse: bool) -> nn.Module:
    """torch.ao's eager QAT; fused, BN scales the weight in front of its rounding, and back."""
    q = pytest.importorskip("torch.ao.quantization")
    torch.manual_seed(1)
    net = nn.Sequential(q.QuantStub(), Net(), q.DeQuantStub()).train()
    net.qconfig = q.QConfig(
        activation=q.FakeQuantize.with_args(
            observer=q.MovingAverageMinMaxObserver, quant_min=0, quant_max=255, dtype=torch.quint8),
        weight=q.FakeQuantize.with_args(
            observer=q.MovingAveragePerChannelMinMaxObserver, quant_min=-128, quant_max=127,
            dtype=torch.qint8, qscheme=torch.per_channel_symmetric, ch_axis=0),
    )  # fmt: skip
    if fuse:
        names = [[f"1.{kind}{n}" for kind in ("conv", "bn", "relu")] for n in (1, 2)]
        q.fuse_modules_qat(net, names, inplace=True)
    q.prepare_qat(net, inplace=True)
    return trained(net).eval().apply(q.disable_observer)


def exported(net: nn.Module, path: Path, **options: object) -> onnx.ModelProto:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(net, (X,), str(path), **options)
    return onnx.load(path)


@pytest.mark.filterwarnings("ignore")
def test_a_norm_inside_of_a_fake_quantised_convolution_folds(tmp_path):
    model = exported(
        eager(fuse=True), tmp_path / "net.onnx", dynamo=False, opset_version=17,
        do_constant_folding=False, training=torch.onnx.TrainingMode.PRESERVE,
    )  # fmt: skip
    assert kinds(model)["BatchNormalization"] == 2
    folded = bnpass.fold(model)
    left = kinds(folded)
    assert left["BatchNormalization"] == left["Div"] == left["Add"] == 0
    assert [left[kind] for kind in CODES] == [kinds(model)[kind] for kind in CODES]
    inputs = feeds(model)
    for name, want in run(model, inputs).items():
        steps = abs(run(folded, inputs)[name] - want)
        assert (steps > 1e-5).mean() < 0.01  # a value at the edge of a step may take the next one


@pytest.mark.filterwarnings("ignore")
def test_a_norm_between_two_roundings_stays_with_the_reason(tmp_path):
    model = exported(eager(fuse=False), tmp_path / "net.onnx", dynamo=False, opset_version=17)
    plan = bnpass.fold(model, plan_only=True)
    assert not plan.folded
    assert all("it is quantised" in entry.reason for entry in plan.entries)


@pytest.mark.parametrize("qat", [True, False])
@pytest.mark.filterwarnings("ignore")
def test_what_pt2e_writes_has_none_and_is_left_as_it_is(qat, tmp_path):
    pt2e = pytest.importorskip("torchao.quantization.pt2e.quantize_pt2e")
    x86 = pytest.importorskip("torchao.quantization.pt2e.quantizer.x86_inductor_quantizer")
    from torchao.quantization.pt2e import move_exported_model_to_eval

    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config(is_qat=qat))
    program = torch.export.export(Net().train(qat), (X,)).module()
    prepared = (pt2e.prepare_qat_pt2e if qat else pt2e.prepare_pt2e)(program, quantizer)
    prepared(X)
    net = move_exported_model_to_eval(pt2e.convert_pt2e(prepared))
    model = exported(net, tmp_path / "net.onnx", dynamo=True, optimize=False)
    assert kinds(model)["BatchNormalization"] == 0
    assert kinds(bnpass.fold(model)) == kinds(model)
