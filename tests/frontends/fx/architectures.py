"""Small versions of well-known architectures, without normalisation unless they say so.

Every builder returns (module, example inputs); the blocks are those of the papers, the widths are
not.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import nn


def image(channels=3, size=32, batch=4):
    return (torch.randn(batch, channels, size, size),)


def vgg():
    layers, width = [], 3
    for out in (8, 8, "M", 16, 16, "M"):
        if out == "M":
            layers.append(nn.MaxPool2d(2, 2))
        else:
            layers += [nn.Conv2d(width, out, 3, padding=1), nn.ReLU(inplace=True)]
            width = out
    head = [nn.Flatten(), nn.Linear(16 * 64, 32), nn.ReLU(True), nn.Dropout(), nn.Linear(32, 10)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d((8, 8)), *head), image()


def alexnet():
    features = nn.Sequential(
        nn.Conv2d(3, 8, 11, 4, 2), nn.ReLU(True), nn.MaxPool2d(3, 2),
        nn.Conv2d(8, 16, 5, padding=2), nn.ReLU(True), nn.LocalResponseNorm(5),
        nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(True), nn.AdaptiveAvgPool2d(2),
    )  # fmt: skip
    head = nn.Sequential(nn.Dropout(), nn.Linear(64, 32), nn.ReLU(True), nn.Linear(32, 10))
    return nn.Sequential(features, nn.Flatten(), head), image(size=64)


class Inception(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.a = nn.Conv2d(n, 4, 1)
        self.b = nn.Sequential(nn.Conv2d(n, 4, 1), nn.ReLU(), nn.Conv2d(4, 6, 3, padding=1))
        self.c = nn.Sequential(nn.Conv2d(n, 2, 1), nn.ReLU(), nn.Conv2d(2, 4, 5, padding=2))
        self.d = nn.Sequential(nn.MaxPool2d(3, 1, 1), nn.Conv2d(n, 2, 1))

    def forward(self, x):
        return F.relu(torch.cat([self.a(x), self.b(x), self.c(x), self.d(x)], 1), inplace=True)


def googlenet():
    return nn.Sequential(
        nn.Conv2d(3, 8, 7, 2, 3), nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True), Inception(8),
        Inception(16), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.4), nn.Linear(16, 10),
    ), image()  # fmt: skip


class Residual(nn.Module):
    """Basic or bottleneck block; ``norm`` is BatchNorm2d or Identity."""

    def __init__(self, n, m, stride, bottleneck, norm):
        super().__init__()
        mid = m // 2 if bottleneck else m
        convs = [(n, mid, 1, 1, 0), (mid, mid, 3, stride, 1), (mid, m, 1, 1, 0)]
        convs = convs if bottleneck else [(n, m, 3, stride, 1), (m, m, 3, 1, 1)]
        parts = []
        for i, (a, b, k, s, p) in enumerate(convs):
            parts += [nn.Conv2d(a, b, k, s, p, bias=False), norm(b)]
            parts += [nn.ReLU(inplace=True)] if i < len(convs) - 1 else []
        self.body = nn.Sequential(*parts)
        change = n != m or stride != 1
        self.down = nn.Sequential(nn.Conv2d(n, m, 1, stride), norm(m)) if change else None
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        out = self.body(x)
        out += x if self.down is None else self.down(x)
        return self.relu(out)


def resnet(bottleneck=False, norm=nn.Identity):
    block = partial(Residual, bottleneck=bottleneck, norm=norm)
    return nn.Sequential(
        nn.Conv2d(3, 8, 7, 2, 3), norm(8), nn.ReLU(True), nn.MaxPool2d(3, 2, 1), block(8, 8, 1),
        block(8, 16, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
    ), image()  # fmt: skip


class SqueezeExcite(nn.Module):
    def __init__(self, n, gate):
        super().__init__()
        self.fc1, self.fc2, self.gate = nn.Conv2d(n, 4, 1), nn.Conv2d(4, n, 1), gate

    def forward(self, x):
        return x * self.gate(self.fc2(F.relu(self.fc1(F.adaptive_avg_pool2d(x, 1)))))


class Inverted(nn.Module):
    """MobileNet's inverted residual, with or without squeeze-and-excite."""

    def __init__(self, n, act, gate=None, stride=1, norm=nn.Identity):
        super().__init__()
        wide = 3 * n
        self.skip = stride == 1
        parts = [nn.Conv2d(n, wide, 1), norm(wide), act()]
        parts += [nn.Conv2d(wide, wide, 3, stride, 1, groups=wide), norm(wide), act()]
        parts += [SqueezeExcite(wide, gate())] if gate else []
        self.body = nn.Sequential(*parts, nn.Conv2d(wide, n, 1), norm(n))

    def forward(self, x):
        return x + self.body(x) if self.skip else self.body(x)


def mobilenet(act=nn.ReLU6, gate=None, norm=nn.Identity):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), norm(8), act(), Inverted(8, act, gate, norm=norm),
        Inverted(8, act, gate, 2, norm), nn.Conv2d(8, 16, 1), norm(16), act(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
    ), image()  # fmt: skip


class Dense(nn.Module):
    def __init__(self, n, norm):
        super().__init__()
        self.norm, self.conv = norm(n), nn.Conv2d(n, 4, 3, padding=1)

    def forward(self, x):
        return torch.cat([x, self.conv(torch.relu(self.norm(x)))], 1)


def densenet(norm=nn.Identity):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), Dense(8, norm), Dense(12, norm), norm(16), nn.ReLU(),
        nn.Conv2d(16, 8, 1), nn.AvgPool2d(2), Dense(8, norm), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(12, 10),
    ), image()  # fmt: skip


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down1, self.down2 = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 8, 3, padding=1)
        self.up, self.join = nn.ConvTranspose2d(8, 4, 2, 2), nn.Conv2d(8, 4, 3, padding=1)
        self.out = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        a = F.relu(self.down1(x))
        b = F.relu(self.down2(F.max_pool2d(a, 2)))
        return self.out(F.relu(self.join(torch.cat([a, F.relu(self.up(b))], 1))))


def unet():
    return UNet(), image(1, 16)


def conv3d():
    return nn.Sequential(
        nn.Conv3d(1, 4, 3, padding=1), nn.LeakyReLU(), nn.MaxPool3d(2), nn.Conv3d(4, 8, 3),
        nn.ELU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(8, 3),
    ), (torch.randn(4, 1, 8, 8, 8),)  # fmt: skip


class ConvNeXtBlock(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.depthwise = nn.Conv2d(n, n, 7, padding=3, groups=n)
        self.norm = nn.LayerNorm(n)
        self.wide, self.narrow = nn.Linear(n, 4 * n), nn.Linear(4 * n, n)
        self.scale = nn.Parameter(torch.full((n,), 0.1))

    def forward(self, x):
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.scale * self.narrow(F.gelu(self.wide(y)))
        return x + y.permute(0, 3, 1, 2)


def convnext():
    return nn.Sequential(
        nn.Conv2d(3, 8, 4, 4), ConvNeXtBlock(8), ConvNeXtBlock(8), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(8, 10),
    ), image()  # fmt: skip


class TextCnn(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(20, 6)
        self.convs = nn.ModuleList(nn.Conv1d(6, 4, k) for k in (2, 3))
        self.fc = nn.Linear(8, 2)

    def forward(self, x):
        y = self.table(x).transpose(1, 2)
        pooled = [F.relu(conv(y)).amax(2) for conv in self.convs]
        return self.fc(torch.cat(pooled, 1))


def text_cnn():
    return TextCnn(), (torch.randint(0, 20, (4, 12)),)


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.before = nn.Embedding(20, 6), nn.Linear(6, 8)
        self.lstm = nn.LSTM(8, 5, batch_first=True, bidirectional=True)
        self.hidden, self.out = nn.Linear(10, 8), nn.Linear(8, 3)

    def forward(self, x):
        y, _ = self.lstm(torch.tanh(self.before(self.table(x))))
        return self.out(torch.relu(self.hidden(y)))


def lstm_tagger():
    return Tagger(), (torch.randint(0, 20, (4, 9)),)


class MixerBlock(nn.Module):
    def __init__(self, tokens, n):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(n), nn.LayerNorm(n)
        self.tokens = nn.Sequential(nn.Linear(tokens, 12), nn.GELU(), nn.Linear(12, tokens))
        self.channels = nn.Sequential(nn.Linear(n, 16), nn.GELU(), nn.Linear(16, n))

    def forward(self, x):
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.norm2(x))


class Mixer(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.fc = nn.Conv2d(3, 8, 8, 8), nn.Linear(8, 10)
        self.blocks = nn.Sequential(MixerBlock(16, 8), MixerBlock(16, 8))

    def forward(self, x):
        x = self.stem(x).flatten(2).transpose(1, 2)
        return self.fc(self.blocks(x).mean(1))


def mixer():
    return Mixer(), image()


def generator():
    return nn.Sequential(
        nn.ConvTranspose2d(10, 16, 4), nn.ReLU(True), nn.ConvTranspose2d(16, 8, 4, 2, 1),
        nn.ReLU(True), nn.ConvTranspose2d(8, 3, 4, 2, 1), nn.Tanh(),
    ), (torch.randn(4, 10, 1, 1),)  # fmt: skip


def discriminator():
    return nn.Sequential(
        nn.Conv2d(3, 8, 4, 2, 1), nn.LeakyReLU(0.2, True), nn.Conv2d(8, 16, 4, 2, 1),
        nn.LeakyReLU(0.2, True), nn.Conv2d(16, 1, 4), nn.Sigmoid(), nn.Flatten(),
    ), image(size=16)  # fmt: skip


PLAIN = {
    "vgg": vgg,
    "alexnet": alexnet,
    "googlenet": googlenet,
    "resnet18": resnet,
    "resnet50": partial(resnet, bottleneck=True),
    "mobilenet_v2": mobilenet,
    "mobilenet_v3": partial(mobilenet, nn.Hardswish, nn.Hardsigmoid),
    "efficientnet": partial(mobilenet, nn.SiLU, nn.Sigmoid),
    "densenet": densenet,
    "unet": unet,
    "conv3d": conv3d,
    "convnext": convnext,
    "text_cnn": text_cnn,
    "lstm_tagger": lstm_tagger,
    "mixer": mixer,
    "generator": generator,
    "discriminator": discriminator,
}
"""Without BatchNorm."""

NORMED = {
    "resnet18": partial(resnet, norm=nn.BatchNorm2d),
    "resnet50": partial(resnet, bottleneck=True, norm=nn.BatchNorm2d),
    "mobilenet_v2": partial(mobilenet, norm=nn.BatchNorm2d),
    "efficientnet": partial(mobilenet, nn.SiLU, nn.Sigmoid, norm=nn.BatchNorm2d),
    "densenet": partial(densenet, norm=nn.BatchNorm2d),
}
"""As their authors made them, with BatchNorm."""
