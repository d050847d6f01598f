"""What a fold leaves of onnxruntime's fused kernels, by counts: a small part of the benchmark."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import bnpass
from benchmarks.inference import changes, export, kernels


class Mixer(nn.Module):
    """ConvMixer's block, and ConvNeXt's with its layer scale."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 4, 4)
        self.deep = nn.Sequential(nn.Conv2d(32, 32, 5, padding=2, groups=32), nn.GELU(),
                                  nn.BatchNorm2d(32))
        self.point = nn.Sequential(nn.Conv2d(32, 32, 1), nn.GELU(), nn.BatchNorm2d(32))
        self.wide = nn.Conv2d(32, 32, 7, padding=3, groups=32)
        self.norm, self.up, self.down = nn.LayerNorm(32), nn.Linear(32, 64), nn.Linear(64, 32)
        self.gamma = nn.Parameter(torch.rand(32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = self.point(x + self.deep(x))
        y = self.norm(self.wide(x).permute(0, 2, 3, 1))
        y = self.gamma * self.down(nn.functional.gelu(self.up(y)))
        return x + y.permute(0, 3, 1, 2)


class Attention(nn.Module):
    """A transformer's block with its norms spelt out, as Llama has them."""

    def __init__(self) -> None:
        super().__init__()
        self.gammas = nn.Parameter(torch.rand(2, 32))
        self.qkv, self.out = nn.Linear(32, 96), nn.Linear(32, 32)
        self.gate, self.up, self.down = nn.Linear(32, 64), nn.Linear(32, 64), nn.Linear(64, 32)

    def norm(self, x: torch.Tensor, which: int) -> torch.Tensor:
        return self.gammas[which] * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(self.norm(x, 0)).chunk(3, -1)
        x = x + self.out(torch.softmax(q @ k.transpose(1, 2) / 32**0.5, -1) @ v)
        y = self.norm(x, 1)
        return x + self.down(nn.functional.silu(self.gate(y)) * self.up(y))


NETS = {"mixer": (Mixer, (1, 3, 32, 32)), "attention": (Attention, (1, 6, 32))}


@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
@pytest.mark.parametrize("name", NETS)
def test_no_fused_kernel_is_lost(name, exporter, tmp_path):
    make, shape = NETS[name]
    source, target = tmp_path / "original.onnx", tmp_path / "folded.onnx"
    export(lambda: (make(), (torch.randn(shape),)), exporter, source)
    bnpass.fold(source, output=target, verify=False)
    counts = {"original": kernels(source), "bnpass": kernels(target)}
    assert changes(counts) == []
    assert counts["bnpass"]["nodes"] <= counts["original"]["nodes"]


def test_a_lost_kernel_is_seen():
    before = {"Gelu": 2, "nodes": 9, "Conv": 3}
    after = {"Erf": 2, "nodes": 15, "Conv": 3, "ReorderInput": 2}
    assert changes({"original": before, "bnpass": after}) == ["Gelu 2 -> 0", "ReorderInput 0 -> 2"]
