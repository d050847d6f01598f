"""Each pattern that folds: modules, functions and methods, against torch in float64."""

from __future__ import annotations

import operator

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.frontends.fx.helpers import Fn, check_fold, inputs, prepared

BN1, BN2, BN3 = nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d


def seq(*parts):
    return nn.Sequential(*parts)


def param(*shape, seed=3):
    return nn.Parameter(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)))


BACKWARD = {
    "conv1d": (seq(nn.Conv1d(3, 6, 3, padding=1), BN1(6)), (2, 3, 9)),
    "conv2d": (seq(nn.Conv2d(3, 6, 3, bias=False), BN2(6)), (2, 3, 7, 7)),
    "conv3d": (seq(nn.Conv3d(2, 4, 3), BN3(4)), (2, 2, 5, 5, 5)),
    "grouped": (seq(nn.Conv2d(4, 8, 3, groups=2), BN2(8)), (2, 4, 7, 7)),
    "depthwise": (seq(nn.Conv2d(4, 4, 3, groups=4), BN2(4)), (2, 4, 7, 7)),
    "same": (seq(nn.Conv2d(3, 4, 4, padding="same"), BN2(4)), (2, 3, 7, 7)),
    "reflect": (seq(nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), BN2(4)), (2, 3, 7, 7)),
    "transposed": (seq(nn.ConvTranspose2d(3, 4, 3, stride=2), BN2(4)), (2, 3, 5, 5)),
    "transposed_grouped": (
        seq(nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, groups=2), BN2(6)), (2, 4, 5, 5)),
    "transposed1d": (seq(nn.ConvTranspose1d(4, 6, 3, groups=2), BN1(6)), (2, 4, 5)),
    "transposed3d": (seq(nn.ConvTranspose3d(4, 6, 2, groups=2), BN3(6)), (2, 4, 3, 3, 3)),
    "linear": (seq(nn.Linear(5, 7), BN1(7)), (3, 5)),
    "linear_without_bias": (seq(nn.Linear(5, 7, bias=False), BN1(7)), (3, 5)),
    "linear_tokens": (
        Fn(lambda s, x: s.bn(s.fc(x).transpose(1, 2)), fc=nn.Linear(5, 7), bn=BN1(7)), (3, 4, 5)),
    "matmul": (Fn(lambda s, x: s.bn(x @ s.w), w=param(5, 7), bn=BN1(7)), (3, 5)),
    "matmul_add": (
        Fn(lambda s, x: s.bn(torch.matmul(x, s.w) + s.b), w=param(5, 7), b=param(7), bn=BN1(7)),
        (3, 5)),
    "linear_of_t": (
        Fn(lambda s, x: s.bn(x.matmul(s.w.t())), w=param(7, 5), bn=BN1(7)), (3, 5)),
    "addmm": (
        Fn(lambda s, x: s.bn(torch.addmm(s.b, x, s.w, beta=0.5, alpha=2.0)),
           w=param(5, 7), b=param(7), bn=BN1(7)), (3, 5)),
    "einsum": (
        Fn(lambda s, x: s.bn(torch.einsum("nk,kc->nc", x, s.w)), w=param(5, 7), bn=BN1(7)), (3, 5)),
    "functional": (
        Fn(lambda s, x: s.bn(F.conv2d(x, s.w, None, stride=2)), w=param(6, 3, 3, 3), bn=BN2(6)),
        (2, 3, 7, 7)),
    "functional_linear": (
        Fn(lambda s, x: s.bn(F.linear(x, s.w, bias=s.b)), w=param(7, 5), b=param(7), bn=BN1(7)),
        (3, 5)),
    "functional_bn": (
        Fn(lambda s, x: F.batch_norm(s.c(x), s.m, s.v, s.g, s.b, s.training, 0.1, 1e-3),
           c=nn.Conv2d(3, 6, 3), m=torch.randn(6), v=torch.rand(6) + 0.5, g=param(6), b=param(6)),
        (2, 3, 7, 7)),
    "no_affine": (seq(nn.Conv2d(3, 6, 3), BN2(6, affine=False)), (2, 3, 7, 7)),
    "maxpool": (seq(nn.Conv2d(3, 6, 3), nn.AvgPool2d(2), BN2(6)), (2, 3, 8, 8)),
    "global_pool": (
        seq(nn.Conv2d(3, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), BN1(6)), (2, 3, 8, 8)),
    "mean": (
        Fn(lambda s, x: s.bn(s.c(x).mean((2, 3))), c=nn.Conv2d(3, 6, 3), bn=BN1(6)), (2, 3, 8, 8)),
    "cat": (
        Fn(lambda s, x: s.bn(torch.cat([s.a(x), s.b(x)], 1)),
           a=nn.Conv2d(3, 4, 3), b=nn.Conv2d(3, 2, 3), bn=BN2(6)), (2, 3, 8, 8)),
    "add": (
        Fn(lambda s, x: s.bn(s.a(x) + s.b(x)),
           a=nn.Conv2d(3, 6, 3), b=nn.Conv2d(3, 6, 3), bn=BN2(6)), (2, 3, 8, 8)),
    "iadd": (
        Fn(lambda s, x: s.bn(operator.iadd(s.a(x), s.b(x))),
           a=nn.Conv2d(3, 6, 3), b=nn.Conv2d(3, 6, 3), bn=BN2(6)), (2, 3, 8, 8)),
    "sub_mul": (
        Fn(lambda s, x: (s.a(x) - 1.5) * s.g / 3 + s.h, a=nn.Conv2d(3, 6, 3), g=param(6, 1, 1),
           h=param(1, 6, 1, 1)), (2, 3, 8, 8)),
    "rsub": (Fn(lambda s, x: s.bn(1.0 - s.a(x)), a=nn.Linear(5, 6), bn=BN1(6)), (3, 5)),
    "view": (
        Fn(lambda s, x: s.bn(s.a(x).view(-1, 6, 2, 2)), a=nn.Linear(5, 24), bn=BN2(6)), (3, 5)),
    "view_size": (
        Fn(lambda s, x: s.bn(s.a(x).view(x.size(0), 6, 2, 2)), a=nn.Linear(5, 24), bn=BN2(6)),
        (3, 5)),
    "permute": (
        Fn(lambda s, x: s.bn(s.a(x).permute(0, 3, 1, 2)), a=nn.Linear(5, 6), bn=BN2(6)),
        (2, 4, 4, 5)),
    "chunk": (
        Fn(lambda s, x: tuple(b(v) for b, v in zip((s.b1, s.b2), s.a(x).chunk(2, 1), strict=True)),
           a=nn.Conv2d(3, 6, 3), b1=BN2(3), b2=BN2(3)), (2, 3, 8, 8)),
    "slices": (
        Fn(lambda s, x: (s.b1(s.a(x)[:, :2]), s.b2(s.a2(x)[:, 1::2, :, 3])),
           a=nn.Conv2d(3, 4, 3), a2=nn.Conv2d(3, 4, 3), b1=BN2(2), b2=BN1(2)), (2, 3, 8, 8)),
    "dropout": (seq(nn.Linear(5, 6), nn.Dropout(), nn.Identity(), BN1(6)), (3, 5)),
    "pixel_shuffle": (seq(nn.Conv2d(3, 8, 3), nn.PixelShuffle(2), BN2(2)), (2, 3, 6, 6)),
    "channel_shuffle": (
        Fn(lambda s, x: s.bn(F.channel_shuffle(s.a(x), 3)), a=nn.Conv2d(3, 6, 3), bn=BN2(6)),
        (2, 3, 6, 6)),
    "upsample": (seq(nn.Conv2d(3, 6, 3), nn.Upsample(scale_factor=2), BN2(6)), (2, 3, 6, 6)),
    "interpolate": (
        Fn(lambda s, x: s.bn(F.interpolate(s.a(x), scale_factor=2, mode="bilinear")),
           a=nn.Conv2d(3, 6, 3), bn=BN2(6)), (2, 3, 6, 6)),
    "stack_sum": (
        Fn(lambda s, x: s.bn(torch.stack([s.a(x), s.b(x)], 1).sum(1)),
           a=nn.Conv2d(3, 6, 3), b=nn.Conv2d(3, 6, 3), bn=BN2(6)), (2, 3, 8, 8)),
    "group_norm": (seq(nn.Conv2d(3, 6, 3), nn.GroupNorm(2, 6), BN2(6)), (2, 3, 8, 8)),
    "instance_norm": (
        seq(nn.Conv2d(3, 6, 3), nn.InstanceNorm2d(6, affine=True), BN2(6)), (2, 3, 8, 8)),
    "layer_norm": (seq(nn.Linear(5, 6), nn.LayerNorm(6), BN1(6)), (3, 5)),
    "two_norms": (seq(nn.Conv2d(3, 6, 3), BN2(6), BN2(6)), (2, 3, 8, 8)),
    "reflection_pad": (seq(nn.Conv2d(3, 6, 3), nn.ReflectionPad2d(2), BN2(6)), (2, 3, 8, 8)),
}  # fmt: skip

FORWARD = {
    "conv": (seq(BN2(3), nn.Conv2d(3, 6, 3)), (2, 3, 8, 8)),
    "grouped": (seq(BN2(4), nn.Conv2d(4, 6, 3, groups=2)), (2, 4, 8, 8)),
    "linear": (seq(BN1(5), nn.Linear(5, 6)), (3, 5)),
    "linear_without_bias": (seq(BN1(5), nn.Linear(5, 6, bias=False)), (3, 5)),
    "matmul": (Fn(lambda s, x: torch.matmul(s.bn(x), s.w), w=param(5, 7), bn=BN1(5)), (3, 5)),
    "pool_flatten": (
        seq(BN2(3), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(48, 6)), (2, 3, 8, 8)),
    "two_readers": (
        Fn(lambda s, x: torch.cat([s.a(y := s.bn(x)), s.b(y)], 1),
           a=nn.Conv2d(3, 4, 3), b=nn.Conv2d(3, 2, 3), bn=BN2(3)), (2, 3, 8, 8)),
    "lstm": (Fn(lambda s, x: s.l(s.bn(x.transpose(1, 2)).transpose(1, 2))[0], bn=BN1(5),
                l=nn.LSTM(5, 4, batch_first=True, bidirectional=True, num_layers=2)), (3, 6, 5)),
    "gru": (Fn(lambda s, x: s.l(s.bn(x.transpose(1, 2)).transpose(1, 2))[0], bn=BN1(5),
               l=nn.GRU(5, 4, batch_first=True)), (3, 6, 5)),
    "before_norm": (seq(BN2(3), BN2(3), nn.Conv2d(3, 4, 1)), (2, 3, 4, 4)),
}  # fmt: skip

POSITIVE = {
    "maxpool": (seq(nn.Conv2d(3, 6, 3), nn.MaxPool2d(2), BN2(6)), (2, 3, 8, 8)),
    "functional_maxpool": (
        Fn(lambda s, x: s.bn(F.max_pool2d(s.a(x), 3, 2, 1)), a=nn.Conv2d(3, 6, 3), bn=BN2(6)),
        (2, 3, 8, 8)),
    "amax": (
        Fn(lambda s, x: s.bn(s.a(x).amax((2, 3))), a=nn.Conv2d(3, 6, 3), bn=BN1(6)), (2, 3, 8, 8)),
    "maximum": (
        Fn(lambda s, x: s.bn(torch.maximum(s.a(x), s.b(x))), a=nn.Linear(5, 6), b=nn.Linear(5, 6),
           bn=BN1(6)), (3, 5)),
    "relu_split": (seq(nn.Conv2d(3, 6, 3), BN2(6), nn.ReLU()), (2, 3, 8, 8)),
}  # fmt: skip


@pytest.mark.parametrize("name", BACKWARD)
def test_folds_backward(name):
    module, shape = BACKWARD[name]
    folded = check_fold(prepared(module), inputs(shape))
    assert "batch_norm" not in getattr(folded, "code", "")


@pytest.mark.parametrize("name", FORWARD)
def test_folds_forward(name):
    module, shape = FORWARD[name]
    check_fold(prepared(module), inputs(shape))


@pytest.mark.parametrize("name", POSITIVE)
def test_folds_with_positive_scales(name):
    module, shape = POSITIVE[name]
    check_fold(prepared(module, positive=True), inputs(shape))


REFUSED = {
    "maxpool_negative": (seq(nn.Conv2d(3, 6, 3), nn.MaxPool2d(2), BN2(6)), (2, 3, 8, 8)),
    "behind_relu": (seq(nn.Conv2d(3, 6, 3), nn.ReLU(), BN2(6), nn.ReLU()), (2, 3, 8, 8)),
    "padded_behind": (seq(BN2(3), nn.Conv2d(3, 6, 3, padding=1)), (2, 3, 8, 8)),
    "reflected_behind": (
        seq(BN2(3), nn.Conv2d(3, 6, 3, padding=1, padding_mode="reflect")), (2, 3, 8, 8)),
    "unknown": (
        Fn(lambda s, x: s.bn(torch.cumsum(s.a(x), 1)), a=nn.Conv2d(3, 6, 3), bn=BN2(6)),
        (2, 3, 8, 8)),
    "counted_padding": (
        seq(nn.Conv2d(3, 6, 3), nn.AvgPool2d(3, padding=1), BN2(6)), (2, 3, 8, 8)),
    "other_reader": (
        Fn(lambda s, x: s.bn(y := s.a(x)) * torch.tanh(y), a=nn.Conv2d(3, 6, 3),
           bn=BN2(6)), (2, 3, 8, 8)),
    "indices": (
        Fn(lambda s, x: s.bn((p := F.max_pool2d(s.a(x), 2, return_indices=True))[0]) + p[1],
           a=nn.Conv2d(3, 6, 3), bn=BN2(6)),
        (2, 3, 8, 8)),
    "batch_statistics": (
        seq(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6, track_running_stats=False)), (2, 3, 8, 8)),
    "no_batch_axis": (
        Fn(lambda s, x: s.bn(s.a(x[0])[None])[0], a=nn.Conv2d(3, 6, 3), bn=BN2(6)), (1, 3, 8, 8)),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_a_reason(name):
    import bnpass

    module, shape = REFUSED[name]
    x = inputs(shape)
    if name == "batch_statistics":
        module = module.double().eval()
        plan = bnpass.fold(module, x, plan_only=True)
        assert "batch statistics" in plan.refused[0].reason
        return
    module = prepared(module)
    if name == "no_batch_axis":
        plan = bnpass.fold(module, x, plan_only=True)
    else:
        check_fold(module, x, left=1)
        plan = bnpass.fold(module, x, plan_only=True)
    assert plan.refused and all(e.reason for e in plan.refused)
