"""More architectures: no image classifiers, or no BN in their papers. See ``architectures``."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

Model = tuple[nn.Module, tuple[torch.Tensor, ...]]


def _double(n: int, m: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(n, m, 3, padding=1), nn.ReLU(True), nn.Conv2d(m, m, 3, padding=1), nn.ReLU(True)
    )


class UNet(nn.Module):
    """arXiv:1505.04597, with padding: four levels down, four up with ConvTranspose."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        sizes = [width << i for i in range(5)]
        self.down = nn.ModuleList(
            _double(a, b) for a, b in zip([1, *sizes[:-1]], sizes, strict=True)
        )
        ups = list(zip(sizes[:0:-1], sizes[-2::-1], strict=True))
        self.up = nn.ModuleList(nn.ConvTranspose2d(a, b, 2, 2) for a, b in ups)
        self.join = nn.ModuleList(_double(2 * b, b) for _, b in ups)
        self.out = nn.Conv2d(width, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        levels: list[torch.Tensor] = []
        for i, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2) if i else x)
            levels.append(x)
        for up, join, level in zip(self.up, self.join, levels[-2::-1], strict=True):
            x = join(torch.cat([level, up(x)], 1))
        result: torch.Tensor = self.out(x)
        return result


def unet() -> Model:
    """A U-Net on images of one channel."""
    return UNet(), (torch.randn(8, 1, 64, 64),)


def c3d() -> Model:
    """arXiv:1412.0767, figure 3: eight 3-d convolutions."""
    layers: list[nn.Module] = []
    n = 3
    for i, stage in enumerate(((8,), (16,), (32, 32), (64, 64), (64, 64))):
        for m in stage:
            layers += [nn.Conv3d(n, m, 3, padding=1), nn.ReLU()]
            n = m
        layers.append(nn.MaxPool3d((1, 2, 2) if i == 0 else 2))
    top = [nn.Flatten(), nn.Linear(n, 128), nn.ReLU(), nn.Dropout(), nn.Linear(128, 128)]
    top += [nn.ReLU(), nn.Dropout(), nn.Linear(128, 10)]
    return nn.Sequential(*layers, *top), (torch.randn(4, 3, 16, 32, 32),)


class LayerNorm2d(nn.LayerNorm):
    """Over the channels of (N, C, H, W)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNeXtBlock(nn.Module):
    """arXiv:2201.03545, figure 4, with layer scale."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(n, n, 7, padding=3, groups=n)
        self.norm = nn.LayerNorm(n)
        self.wide, self.narrow = nn.Linear(n, 4 * n), nn.Linear(4 * n, n)
        self.scale = nn.Parameter(torch.full((n,), 0.1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.scale * self.narrow(F.gelu(self.wide(y)))
        return x + y.permute(0, 3, 1, 2)


def convnext() -> Model:
    """ConvNeXt-T: its 18 blocks, a quarter of its width."""
    sizes, layers = (24, 48, 96, 192), list[nn.Module]()
    for i, (n, repeat) in enumerate(zip(sizes, (3, 3, 9, 3), strict=True)):
        if i:
            layers += [LayerNorm2d(sizes[i - 1]), nn.Conv2d(sizes[i - 1], n, 2, 2)]
        else:
            layers += [nn.Conv2d(3, n, 4, 4), LayerNorm2d(n)]
        layers += [ConvNeXtBlock(n) for _ in range(repeat)]
    top = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(192), nn.Linear(192, 10)]
    return nn.Sequential(*layers, *top), (torch.randn(8, 3, 64, 64),)


class TextCnn(nn.Module):
    """arXiv:1408.5882: three filter widths over word vectors, maximum over time."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(1000, 300)
        self.convs = nn.ModuleList(nn.Conv1d(300, 100, k) for k in (3, 4, 5))
        self.drop, self.fc = nn.Dropout(), nn.Linear(300, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.table(x).transpose(1, 2)
        pooled = [F.relu(conv(y)).amax(2) for conv in self.convs]
        result: torch.Tensor = self.fc(self.drop(torch.cat(pooled, 1)))
        return result


def text_cnn() -> Model:
    """A classifier of sentences."""
    return TextCnn(), (torch.randint(0, 1000, (8, 40)),)


class Tagger(nn.Module):
    """Word vectors, a projection, two bidirectional LSTM layers, and two layers per word."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.before = nn.Embedding(1000, 64), nn.Linear(64, 64)
        self.lstm = nn.LSTM(64, 48, 2, batch_first=True, bidirectional=True)
        self.hidden, self.out = nn.Linear(96, 64), nn.Linear(64, 17)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, _ = self.lstm(torch.tanh(self.before(self.table(x))))
        result: torch.Tensor = self.out(torch.relu(self.hidden(y)))
        return result


def lstm_tagger() -> Model:
    """A tagger of parts of speech."""
    return Tagger(), (torch.randint(0, 1000, (8, 20)),)


class MixerBlock(nn.Module):
    """arXiv:2105.01601, figure 1."""

    def __init__(self, tokens: int, n: int, token_width: int, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(n), nn.LayerNorm(n)
        self.tokens = nn.Sequential(
            nn.Linear(tokens, token_width), nn.GELU(), nn.Linear(token_width, tokens)
        )
        self.channels = nn.Sequential(nn.Linear(n, width), nn.GELU(), nn.Linear(width, n))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        y: torch.Tensor = x + self.channels(self.norm2(x))
        return y


class Mixer(nn.Module):
    """arXiv:2105.01601: S/16's eight blocks, a quarter of its width."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 128, 16, 16), nn.LayerNorm(128)
        self.blocks = nn.Sequential(*(MixerBlock(16, 128, 64, 512) for _ in range(8)))
        self.fc = nn.Linear(128, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        result: torch.Tensor = self.fc(self.norm(self.blocks(x)).mean(1))
        return result


def mixer() -> Model:
    """MLP-Mixer-S/16."""
    return Mixer(), (torch.randn(8, 3, 64, 64),)


def generator() -> Model:
    """arXiv:1511.06434, figure 1: noise to images of 64 by 64."""
    layers: list[nn.Module] = [nn.ConvTranspose2d(100, 128, 4), nn.ReLU(True)]
    for n in (128, 64, 32):
        layers += [nn.ConvTranspose2d(n, n // 2, 4, 2, 1), nn.ReLU(True)]
    layers += [nn.ConvTranspose2d(16, 3, 4, 2, 1), nn.Tanh()]
    return nn.Sequential(*layers), (torch.randn(8, 100, 1, 1),)


def discriminator() -> Model:
    """arXiv:1511.06434: images of 64 by 64 to a probability."""
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 4, 2, 1), nn.LeakyReLU(0.2, True)]
    for n in (16, 32, 64):
        layers += [nn.Conv2d(n, 2 * n, 4, 2, 1), nn.LeakyReLU(0.2, True)]
    layers += [nn.Conv2d(128, 1, 4), nn.Sigmoid(), nn.Flatten()]
    return nn.Sequential(*layers), (torch.randn(8, 3, 64, 64),)
