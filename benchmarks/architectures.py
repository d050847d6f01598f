"""Published architectures at their full depth and a fraction of their width, with or without BN.

``PLAIN`` has them without Batch Normalization, whatever their authors did; ``NORMED`` as their
authors made them, with it. Every entry returns (module, example inputs); weights are random.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

Model = tuple[nn.Module, tuple[torch.Tensor, ...]]
Norm = Callable[[int], nn.Module]
Act = Callable[[], nn.Module]

W = 4  # widths are divided by this


def image(channels: int = 3, size: int = 64, batch: int = 8) -> tuple[torch.Tensor, ...]:
    """Random images."""
    return (torch.randn(batch, channels, size, size),)


def head(n: int, classes: int = 10) -> list[nn.Module]:
    """Global average and a linear layer."""
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(n, classes)]


def vgg16() -> Model:
    """arXiv:1409.1556, configuration D."""
    layers: list[nn.Module] = []
    n = 3
    for repeat, width in ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)):
        for _ in range(repeat):
            layers += [nn.Conv2d(n, width // W, 3, padding=1), nn.ReLU(inplace=True)]
            n = width // W
        layers.append(nn.MaxPool2d(2, 2))
    wide = 4096 // W
    layers += [nn.Flatten(), nn.Linear(4 * n, wide), nn.ReLU(True), nn.Dropout()]
    layers += [nn.Linear(wide, wide), nn.ReLU(True), nn.Dropout(), nn.Linear(wide, 10)]
    return nn.Sequential(*layers), image()


def alexnet() -> Model:
    """Krizhevsky et al. 2012: grouped convolutions and local response normalisation."""
    a, b, c, wide = 96 // W, 256 // W, 384 // W, 4096 // W
    return nn.Sequential(
        nn.Conv2d(3, a, 11, 4, 2), nn.ReLU(True), nn.LocalResponseNorm(5), nn.MaxPool2d(3, 2),
        nn.Conv2d(a, b, 5, padding=2, groups=2), nn.ReLU(True), nn.LocalResponseNorm(5),
        nn.MaxPool2d(3, 2), nn.Conv2d(b, c, 3, padding=1), nn.ReLU(True),
        nn.Conv2d(c, c, 3, padding=1, groups=2), nn.ReLU(True),
        nn.Conv2d(c, b, 3, padding=1, groups=2), nn.ReLU(True), nn.MaxPool2d(3, 2), nn.Flatten(),
        nn.Dropout(), nn.Linear(9 * b, wide), nn.ReLU(True), nn.Dropout(), nn.Linear(wide, wide),
        nn.ReLU(True), nn.Linear(wide, 10),
    ), image(size=128)  # fmt: skip


class Inception(nn.Module):
    """arXiv:1409.4842, figure 2(b); without BN."""

    def __init__(self, n: int, *widths: int) -> None:
        super().__init__()
        one, three_in, three, five_in, five, pooled = widths
        self.one = self._conv(n, one, 1)
        self.three = nn.Sequential(self._conv(n, three_in, 1), self._conv(three_in, three, 3))
        self.five = nn.Sequential(self._conv(n, five_in, 1), self._conv(five_in, five, 5))
        self.pooled = nn.Sequential(nn.MaxPool2d(3, 1, 1), self._conv(n, pooled, 1))

    @staticmethod
    def _conv(n: int, m: int, k: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(n, m, k, padding=k // 2), nn.ReLU(inplace=True))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.one(x), self.three(x), self.five(x), self.pooled(x)], 1)


_INCEPTIONS = (
    (64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64), None, (192, 96, 208, 16, 48, 64),
    (160, 112, 224, 24, 64, 64), (128, 128, 256, 24, 64, 64), (112, 144, 288, 32, 64, 64),
    (256, 160, 320, 32, 128, 128), None, (256, 160, 320, 32, 128, 128),
    (384, 192, 384, 48, 128, 128),
)  # fmt: skip


def googlenet() -> Model:
    """arXiv:1409.4842, table 1; without BN and without the auxiliary classifiers."""
    a, b, n = 64 // W, 192 // W, 192 // W
    layers: list[nn.Module] = [
        nn.Conv2d(3, a, 7, 2, 3), nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.LocalResponseNorm(5), nn.Conv2d(a, a, 1), nn.ReLU(), nn.Conv2d(a, b, 3, padding=1),
        nn.ReLU(), nn.LocalResponseNorm(5), nn.MaxPool2d(3, 2, ceil_mode=True),
    ]  # fmt: skip
    for widths in _INCEPTIONS:
        if widths is None:
            layers.append(nn.MaxPool2d(3, 2, ceil_mode=True))
            continue
        small = [w // W for w in widths]
        layers.append(Inception(n, *small))
        n = small[0] + small[2] + small[4] + small[5]
    return nn.Sequential(*layers, nn.Dropout(0.4), *head(n)), image()


class Residual(nn.Module):
    """arXiv:1512.03385: basic or bottleneck block."""

    def __init__(self, n: int, m: int, stride: int, bottleneck: bool, norm: Norm) -> None:
        super().__init__()
        out = 4 * m if bottleneck else m
        convs = [(n, m, 3, stride), (m, m, 3, 1)]
        convs = [(n, m, 1, 1), (m, m, 3, stride), (m, out, 1, 1)] if bottleneck else convs
        parts: list[nn.Module] = []
        for i, (a, b, k, s) in enumerate(convs):
            parts += [nn.Conv2d(a, b, k, s, k // 2, bias=norm is nn.Identity), norm(b)]
            parts += [nn.ReLU(inplace=True)] if i < len(convs) - 1 else []
        self.body = nn.Sequential(*parts)
        change = n != out or stride != 1
        self.down = nn.Sequential(nn.Conv2d(n, out, 1, stride), norm(out)) if change else None
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.body(x)
        out += x if self.down is None else self.down(x)
        result: torch.Tensor = self.relu(out)
        return result


def resnet(blocks: tuple[int, ...], bottleneck: bool, norm: Norm = nn.Identity) -> Model:
    """arXiv:1512.03385, table 1."""
    n = 64 // W
    layers = [nn.Conv2d(3, n, 7, 2, 3), norm(n), nn.ReLU(True), nn.MaxPool2d(3, 2, 1)]
    for stage, repeat in enumerate(blocks):
        m = (64 << stage) // W
        for i in range(repeat):
            layers.append(Residual(n, m, 2 if stage and not i else 1, bottleneck, norm))
            n = 4 * m if bottleneck else m
    return nn.Sequential(*layers, *head(n)), image()


class SqueezeExcite(nn.Module):
    """arXiv:1709.01507, as MobileNetV3 and EfficientNet have it: 1x1 convolutions."""

    def __init__(self, n: int, mid: int, act: Act, gate: Act) -> None:
        super().__init__()
        self.fc1, self.act = nn.Conv2d(n, mid, 1), act()
        self.fc2, self.gate = nn.Conv2d(mid, n, 1), gate()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.fc2(self.act(self.fc1(F.adaptive_avg_pool2d(x, 1))))
        return x * self.gate(y)


class Inverted(nn.Module):
    """arXiv:1801.04381: expand, depthwise, squeeze-and-excite if any, project."""

    def __init__(self, n: int, wide: int, m: int, k: int, stride: int, act: Act, norm: Norm,
                 excite: nn.Module | None = None) -> None:
        super().__init__()
        self.skip = stride == 1 and n == m
        parts: list[nn.Module] = [nn.Conv2d(n, wide, 1), norm(wide), act()] if wide != n else []
        parts += [nn.Conv2d(wide, wide, k, stride, k // 2, groups=wide), norm(wide), act()]
        parts += [excite] if excite else []
        self.body = nn.Sequential(*parts, nn.Conv2d(wide, m, 1), norm(m))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x) if self.skip else self.body(x)


def _stem(m: int, act: Act, norm: Norm) -> list[nn.Module]:
    return [nn.Conv2d(3, m, 3, 2, 1), norm(m), act()]


def mobilenet_v2(norm: Norm = nn.Identity) -> Model:
    """arXiv:1801.04381, table 2."""
    n, act = 32 // W, nn.ReLU6
    layers = _stem(n, act, norm)
    for t, c, repeat, stride in (
        (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2),
        (6, 320, 1, 1),
    ):  # fmt: skip
        for i in range(repeat):
            m = c // W
            layers.append(Inverted(n, t * n, m, 3, 1 if i else stride, act, norm))
            n = m
    wide = 1280 // W
    return nn.Sequential(*layers, nn.Conv2d(n, wide, 1), norm(wide), act(), *head(wide)), image()


_V3_SMALL = (
    (3, 16, 16, 1, 0, 2), (3, 72, 24, 0, 0, 2), (3, 88, 24, 0, 0, 1), (5, 96, 40, 1, 1, 2),
    (5, 240, 40, 1, 1, 1), (5, 240, 40, 1, 1, 1), (5, 120, 48, 1, 1, 1), (5, 144, 48, 1, 1, 1),
    (5, 288, 96, 1, 1, 2), (5, 576, 96, 1, 1, 1), (5, 576, 96, 1, 1, 1),
)  # fmt: skip


def mobilenet_v3(norm: Norm = nn.Identity) -> Model:
    """arXiv:1905.02244, table 2: the small one."""
    n, hard = 16 // 2, nn.Hardswish
    layers = _stem(n, hard, norm)
    for k, wide, m, excite, hs, stride in _V3_SMALL:
        act = hard if hs else nn.ReLU
        se = SqueezeExcite(wide // 2, wide // 8, nn.ReLU, nn.Hardsigmoid) if excite else None
        layers.append(Inverted(n, wide // 2, m // 2, k, stride, act, norm, se))
        n = m // 2
    last = [nn.Conv2d(n, 288, 1), norm(288), hard(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    top = [nn.Linear(288, 512), hard(), nn.Dropout(0.2), nn.Linear(512, 10)]
    return nn.Sequential(*layers, *last, *top), image()


def efficientnet(norm: Norm = nn.Identity) -> Model:
    """arXiv:1905.11946, table 1: B0, with SiLU and squeeze-and-excite."""
    n, act = 32 // W, nn.SiLU
    layers = _stem(n, act, norm)
    for t, k, stride, c, repeat in (
        (1, 3, 1, 16, 1), (6, 3, 2, 24, 2), (6, 5, 2, 40, 2), (6, 3, 2, 80, 3), (6, 5, 1, 112, 3),
        (6, 5, 2, 192, 4), (6, 3, 1, 320, 1),
    ):  # fmt: skip
        for i in range(repeat):
            m = c // W
            se = SqueezeExcite(t * n, max(1, n // 4), act, nn.Sigmoid)
            layers.append(Inverted(n, t * n, m, k, 1 if i else stride, act, norm, se))
            n = m
    wide = 1280 // W
    return nn.Sequential(*layers, nn.Conv2d(n, wide, 1), norm(wide), act(), *head(wide)), image()


class Dense(nn.Module):
    """arXiv:1608.06993: a layer of a dense block, with its bottleneck."""

    def __init__(self, n: int, growth: int, norm: Norm) -> None:
        super().__init__()
        self.body = nn.Sequential(
            norm(n), nn.ReLU(), nn.Conv2d(n, 4 * growth, 1), norm(4 * growth), nn.ReLU(),
            nn.Conv2d(4 * growth, growth, 3, padding=1),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, self.body(x)], 1)


def densenet121(norm: Norm = nn.Identity) -> Model:
    """arXiv:1608.06993, table 1."""
    n, growth = 64 // W, 32 // W
    layers = [nn.Conv2d(3, n, 7, 2, 3), norm(n), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    for block, repeat in enumerate((6, 12, 24, 16)):
        for _ in range(repeat):
            layers.append(Dense(n, growth, norm))
            n += growth
        if block < 3:
            layers += [norm(n), nn.ReLU(), nn.Conv2d(n, n // 2, 1), nn.AvgPool2d(2, 2)]
            n //= 2
    return nn.Sequential(*layers, norm(n), nn.ReLU(), *head(n)), image()


def _resnet(blocks: tuple[int, ...], bottleneck: bool) -> Callable[..., Model]:
    return partial(resnet, blocks, bottleneck)


_MADE: dict[str, Callable[..., Model]] = {
    "ResNet-18": _resnet((2, 2, 2, 2), False),
    "ResNet-50": _resnet((3, 4, 6, 3), True),
    "MobileNetV2": mobilenet_v2,
    "MobileNetV3-small": mobilenet_v3,
    "EfficientNet-B0": efficientnet,
    "DenseNet-121": densenet121,
}


def _plain() -> dict[str, Callable[[], Model]]:
    from benchmarks import architectures_more as more

    rest: dict[str, Any] = {
        "U-Net": more.unet, "C3D": more.c3d, "ConvNeXt-T": more.convnext,
        "Text CNN": more.text_cnn, "LSTM tagger": more.lstm_tagger, "MLP-Mixer-S": more.mixer,
        "DCGAN generator": more.generator, "DCGAN discriminator": more.discriminator,
    }  # fmt: skip
    return {"VGG-16": vgg16, "AlexNet": alexnet, "GoogLeNet": googlenet, **_MADE, **rest}


PLAIN: dict[str, Callable[[], Model]] = _plain()
NORMED: dict[str, Callable[[], Model]] = {
    name: partial(make, norm=nn.BatchNorm2d) for name, make in _MADE.items()
}
